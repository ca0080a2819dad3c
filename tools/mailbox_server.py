"""The development mailbox's server: `python -m tools.mailbox_server PORT [FOLDER]`."""

import sys

from webapp.devmail import main

if __name__ == "__main__":
    main(sys.argv[1:])
