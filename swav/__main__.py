from swav.cli import main

main()
