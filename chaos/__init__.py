"""Break everything that signup depends on, again and again, and count the emails: a tool for developers."""
