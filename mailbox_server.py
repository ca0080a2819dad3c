"""The development mailbox's server: `python mailbox_server.py PORT [FOLDER]`."""

import sys

from webapp.mailbox import main

if __name__ == "__main__":
    main(sys.argv[1:])
