"""Break everything that signup depends on, again and again, and count the mails: a tool for developers."""
