"""Yours: nothing here changes with a new release. docs/make-it-yours.md says what it is for."""
