"""The kinds of emails, each a folder of templates."""

from __future__ import annotations

PASSWORD_CHANGED = "password_changed"  # noqa: S105 - no password  # nosec B105
ADDRESS_CHANGED = "address_changed"
USERNAME_CHANGED = "username_changed"
ACCOUNT_DELETED = "account_deleted"
ACCOUNT_REMOVED = "account_removed"

# Each is a folder of templates that extend mail/notice.html and mail/notice.txt.
NOTICES = (PASSWORD_CHANGED, ADDRESS_CHANGED, USERNAME_CHANGED, ACCOUNT_DELETED, ACCOUNT_REMOVED)
RESET_TEMPLATE = "reset_password"
TEST_TEMPLATE = "test"

# Never-verified users vanish this long after their signup or last mail.
PURGE_AFTER = 7 * 86400.0
VERIFY_TEMPLATE = "verify_email"
ACCOUNT_EXISTS_TEMPLATE = "account_exists"
CHANGE_TEMPLATE = "change_email"
TEMPLATES = (
    VERIFY_TEMPLATE,
    ACCOUNT_EXISTS_TEMPLATE,
    CHANGE_TEMPLATE,
    RESET_TEMPLATE,
    *NOTICES,
    TEST_TEMPLATE,
)

# What carries a link of each purpose.
LINK_TEMPLATES = {
    "signup": VERIFY_TEMPLATE,
    "change": CHANGE_TEMPLATE,
    "revoke": ADDRESS_CHANGED,
    "reset": RESET_TEMPLATE,
}

# What is sent even when it is nobody's.
OWNERLESS = (*NOTICES, TEST_TEMPLATE)
