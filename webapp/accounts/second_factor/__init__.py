"""A second factor beside the password: six digits from an app, new every half minute (TOTP), or a recovery code."""
