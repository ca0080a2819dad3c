"""The kinds of emails, each a folder of templates."""

from __future__ import annotations

PASSWORD_CHANGED = "password_changed"  # noqa: S105 - no password  # nosec B105
ADDRESS_CHANGED = "address_changed"
USERNAME_CHANGED = "username_changed"
ACCOUNT_DELETED = "account_deleted"
ACCOUNT_REMOVED = "account_removed"
SECOND_FACTOR_ON = "second_factor_on"
SECOND_FACTOR_OFF = "second_factor_off"
SECOND_FACTOR_RESET = "second_factor_reset"
RECOVERY_CODE_USED = "recovery_code_used"
RECOVERY_CODES_MADE = "recovery_codes_made"

# Each is a folder of templates that extend mail/notice.html and mail/notice.txt.
NOTICES = (
    *(PASSWORD_CHANGED, ADDRESS_CHANGED, USERNAME_CHANGED, ACCOUNT_DELETED, ACCOUNT_REMOVED),
    *(SECOND_FACTOR_ON, SECOND_FACTOR_OFF, SECOND_FACTOR_RESET, RECOVERY_CODE_USED, RECOVERY_CODES_MADE),
)
RESET_TEMPLATE = "reset_password"
TEST_TEMPLATE = "test"

# Users who never verify are deleted this long after their signup or last email.
PURGE_AFTER = 7 * 86400.0
VERIFY_TEMPLATE = "verify_email"
ACCOUNT_EXISTS_TEMPLATE = "account_exists"
CHANGE_TEMPLATE = "change_email"
TEMPLATES = (VERIFY_TEMPLATE, ACCOUNT_EXISTS_TEMPLATE, CHANGE_TEMPLATE, RESET_TEMPLATE, *NOTICES, TEST_TEMPLATE)

# Emails that say when and where something was asked for or done.
TELLS_WHERE = (*NOTICES, RESET_TEMPLATE)

# The email that carries a link, by the link's purpose.
LINK_TEMPLATES = {
    "signup": VERIFY_TEMPLATE,
    "change": CHANGE_TEMPLATE,
    "revoke": ADDRESS_CHANGED,
    "reset": RESET_TEMPLATE,
}

# Emails that are sent even if they belong to no user.
OWNERLESS = (*NOTICES, TEST_TEMPLATE)
