from rebasin_utils.cli import main

main()
