"""Show that each defence is needed: take it out, and a test fails. `make defences`.

Each runs in a copy of the tree; the tests run first with nothing taken out, and must pass.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
AT_ONCE = 2


@dataclass(frozen=True)
class Defence:
    """`number`: of the promise in docs/security.md. `needs`: the test that fails without it."""

    number: int
    what: str
    file: str
    present: str
    absent: str
    needs: str


DEFENCES = [
    Defence(
        28,
        "nobody signs in to a locked account",
        "webapp/accounts/authentication.py",
        "and is_right and user.locked_at is None:",
        "and is_right:",
        "test_a_locked_account_is_a_wrong_password",
    ),
    Defence(
        28,
        "a link that is begun for a locked account is void",
        "webapp/accounts/links.py",
        "        voided_at=db_now() if user.locked_at else None,\n",
        "        voided_at=None,\n",
        "test_a_locked_signup_is_verified_by_nothing_and_its_page_tells_nothing",
    ),
    Defence(
        28,
        "nobody who is being locked gets a link for a new password",
        "webapp/accounts/users.py",
        "select(User.id).where(User.id == user.id, User.locked_at.is_(None))",
        "select(User.id).where(User.id == user.id)",
        "test_nobody_who_was_found_just_before_gets_a_link",
    ),
    Defence(
        28,
        "a link for a new password does nothing for a locked account",
        "webapp/accounts/password_change.py",
        " or user.locked_at is not None:",
        ":",
        "test_a_link_that_was_begun_just_before_does_nothing",
    ),
    Defence(
        28,
        "nor does one for another address",
        "webapp/accounts/email_change.py",
        'if user.locked_at is not None and proof.purpose != "revoke":',
        "if False:",
        "test_a_link_that_was_begun_just_before_does_nothing",
    ),
    Defence(
        29,
        "actions of operators ask for the password again",
        "webapp/pages/ops/access.py",
        'request.method != "POST" or sessions.is_reauthenticated(current())',
        "True",
        "test_after_ten_minutes_an_action_takes_the_password_and_goes_on_with_what_was_asked",
    ),
    Defence(
        27,
        "an app is known by its whole origin",
        "webapp/pages/shared/way_on.py",
        """        if place.startswith(origin) and place[len(origin) :][:1] in {"", "/", "?", "#"}:\n""",
        "        if place.startswith(origin):\n",
        "test_anything_else_is_ignored",
    ),
    Defence(
        27,
        "nothing that looks like a path leads to another host",
        "webapp/pages/shared/way_on.py",
        " or MISREAD.search(plain)",
        "",
        "test_anything_else_is_ignored",
    ),
    Defence(
        1,
        "signup looks no address up",
        "webapp/accounts/signup.py",
        "    signup_id = verification_id or uuid.uuid4()\n",
        "    signup_id = verification_id or uuid.uuid4()\n"
        "    if users.find_verified(email_key=address.key):\n"
        "        users.find_verified(email_key=address.key)\n",
        "test_signing_up_tells_no_address_from_another",
    ),
    Defence(
        1,
        "a sign-in hashes for nobody too",
        "webapp/accounts/hash_cost.py",
        "        _check(hasher, _dummy(hasher.memory_cost, hasher.time_cost, hasher.parallelism), password)\n",
        "",
        "test_each_sign_in_checks_two_passwords",
    ),
    Defence(
        1,
        "checking an old hash takes as long as checking a new one",
        "webapp/accounts/hash_cost.py",
        "    if memory := _missing(",
        "    if memory := False and _missing(",
        "test_every_check_costs_what_is_set_now_at_least",
    ),
    Defence(
        1,
        "a pending signup is not found by its address",
        "webapp/accounts/authentication.py",
        "and_(is_former, User.email_key == address)",
        "User.email_key == address",
        "test_what_a_signup_can_do_depends_on_no_other_of_its_address",
    ),
    Defence(
        1,
        "of one name the first signup is found, whoever comes later",
        "webapp/accounts/authentication.py",
        "            User.id,\n        )\n",
        "            User.id.desc(),\n        )\n",
        "test_who_signs_up_later_with_the_same_name_shuts_nobody_out",
    ),
    Defence(
        1,
        "the waiting page shows no limit",
        "webapp/pages/shared/mail_status.py",
        "    if was_held and (",
        "    if not was_held and False and (",
        "test_a_mail_that_waits_for_its_address_tells_the_story_of_one_that_does_not",
    ),
    Defence(
        1,
        "a mail that waits does not show when another is asked for",
        "webapp/outbox/outcomes.py",
        "    free(held, next_attempt_at=until, dedupe_key=outgoing_email.HELD_KEY)\n",
        "    free(held, next_attempt_at=until)\n",
        "test_a_mail_that_waits_for_its_address_tells_the_story_of_one_that_does_not",
    ),
    Defence(
        2,
        "the worker tells an account's owner, without a link",
        "webapp/delivery/send.py",
        "            (owner.exists(), ACCOUNT_EXISTS_TEMPLATE),\n",
        "",
        "test_an_account_is_told_of_signups_under_the_same_limit",
    ),
    Defence(
        3,
        "a link alone opens no account",
        "webapp/pages/signup/verify.py",
        "    if not form.password.data:\n        form.password.errors",
        "    if not form.password.data:\n        return None\n        form.password.errors",
        "test_another_browser_gives_the_password",
    ),
    Defence(
        3,
        "verifying voids the rivals",
        "webapp/accounts/verification.py",
        "    void_rivals(verification.email_key, but=verification)\n",
        "",
        "test_the_owner_wins_over_who_signed_up_with_the_address_before",
    ),
    Defence(
        4,
        "spellings of an address are one",
        "webapp/accounts/identifiers/email_addresses.py",
        'key=f"{valid.local_part.lower()}@',
        'key=f"{valid.local_part}@',
        "test_spellings_of_one_address_have_one_key",
    ),
    Defence(
        4,
        "a pending signup takes no name",
        "webapp/accounts/users.py",
        "HOLDS = or_(User.email_verified_at.is_not(None), User.purge_at.is_(None))\n",
        "HOLDS = or_(User.id > 0, User.purge_at.is_(None))\n",
        "test_a_pending_signup_reserves_nothing",
    ),
    Defence(
        4,
        "names that look alike are one",
        "webapp/accounts/users.py",
        "User.username_skeleton == skeleton)\n",
        "User.username_skeleton == key)\n",
        "test_a_username_that_looks_like_one_that_is_held_is_taken",
    ),
    Defence(
        4,
        "names hold nothing that cannot be seen",
        "webapp/accounts/identifiers/usernames.py",
        "    if INVISIBLE.search(name):\n",
        "    if False:\n",
        "test_a_username_holds_nothing_that_cannot_be_seen",
    ),
    Defence(
        4,
        "names that people take for ours are reserved",
        "webapp/accounts/identifiers/usernames.py",
        "    if skeleton(name) in _skeletons(tuple(reserved)):\n",
        "    if False:\n",
        "test_names_that_people_take_for_ours_are_reserved",
    ),
    Defence(
        4,
        "names turn no text around",
        "webapp/pages/shared/forms.py",
        " or BIDI_CONTROLS & set(text):\n",
        ":\n",
        "test_a_full_name_that_turns_text_around_is_refused",
    ),
    Defence(
        5,
        "weak passwords are refused",
        "webapp/accounts/passwords.py",
        "WEAK_SCORE = 1\n",
        "WEAK_SCORE = -1\n",
        "test_common_passwords_and_the_persons_own_words_are_refused_with_the_reason",
    ),
    Defence(
        5,
        "hashes grow with the settings",
        "webapp/accounts/passwords.py",
        "    return hasher().check_needs_rehash(kept)\n",
        "    return False\n",
        "test_signing_in_gives_an_old_hash_the_strength_of_today",
    ),
    Defence(
        6,
        "names have no control characters",
        "webapp/pages/shared/forms.py",
        'in {"Cc", "Cs", "Zl", "Zp"}',
        "in set()",
        "test_bad_input_is_told_beside_its_field_and_nothing_is_written",
    ),
    Defence(
        7,
        "looking at a link does nothing",
        "webapp/pages/signup/verify.py",
        "    return _page(proof, ConfirmForm(",
        "    verification.confirm(proof.id)\n    return _page(proof, ConfirmForm(",
        "test_fifty_looks_at_the_link_change_nothing_and_the_click_still_works",
    ),
    Defence(
        8,
        "the button confirms what its page showed",
        "webapp/pages/shared/link_cookie.py",
        "bool(self.validate()) and self.verification.data == str(proof.id)\n",
        "bool(self.validate())\n",
        "test_the_button_confirms_only_what_its_page_showed",
    ),
    Defence(
        8,
        "after an hour the password is asked",
        "webapp/pages/signup/waiting.py",
        ' or time.time() - session["signup"]["at"] >= CONFIRM_SECONDS:\n',
        ":\n",
        "test_after_an_hour_the_browser_that_signed_up_gives_the_password_too",
    ),
    Defence(
        9,
        "wrong codes are counted",
        "webapp/accounts/codes.py",
        "    return bool(signups >= TRIES_OF_A_SIGNUP or addresses >= TRIES_OF_AN_ADDRESS)\n",
        "    return False\n",
        "test_after_five_wrong_codes_no_code_counts_and_the_link_still_does",
    ),
    Defence(
        9,
        "a code counts once its mail left",
        "webapp/accounts/codes.py",
        "    return bool(is_alive) and is_same\n",
        "    return is_same\n",
        "test_a_code_counts_only_after_its_mail_was_handed_over",
    ),
    Defence(
        10,
        "who confirms looks again under the lock",
        "webapp/accounts/verification.py",
        "    db.session.refresh(user, with_for_update=True)\n    check(verification)\n",
        "    db.session.refresh(user, with_for_update=True)\n",
        "test_who_confirms_second_changes_nothing",
    ),
    Defence(
        10,
        "a link proves its address for the signup at hand",
        "webapp/accounts/verification.py",
        "    user = holder if holder is not None and",
        "    user = holder if holder is None and",
        "test_a_link_proves_its_address_for_another_signup_that_this_browser_holds",
    ),
    Defence(
        11,
        "an altered link is nobody's",
        "webapp/accounts/links.py",
        "    if not hmac.compare_digest(token(verification), token_text):\n        raise LinkInvalid\n",
        "",
        "test_an_altered_foreign_or_garbage_link_gets_one_and_the_same_404",
    ),
    Defence(
        12,
        "a changed address voids what was sent",
        "webapp/accounts/signup.py",
        "        links.void(former, CHANGED)\n",
        "        pass\n",
        "test_a_changed_address_voids_the_former_link_and_gets_a_mail_at_once",
    ),
    Defence(
        13,
        "signing out ends the session on the server",
        "webapp/accounts/sessions.py",
        "    _revoke(UserSession.token_hash == hashed(token))\n    db.session.commit()\n",
        "    db.session.commit()\n",
        "test_signing_out_ends_the_session_on_the_server",
    ),
    Defence(
        14,
        "requests are limited",
        "webapp/pages/shared/rate_limits.py",
        "    if not is_within:\n",
        "    if not is_within and False:\n",
        "test_over_the_limit_one_reads_when_to_come_back_and_nothing_is_written",
    ),
    Defence(
        14,
        "mails to one mailbox are limited",
        "webapp/outbox/address_limits.py",
        "        if reached := _reached(email, limits, rivals[n:]):\n",
        "        if (reached := _reached(email, limits, rivals[n:])) and False:\n",
        "test_the_second_mail_to_an_address_waits_out_the_minute",
    ),
    Defence(
        14,
        "+tags of one mailbox count together",
        "webapp/outbox/outgoing_email.py",
        "{local.split('+')[0] or local}@{domain}",
        "{local}@{domain}",
        "test_tags_of_one_mailbox_share_its_limit_and_each_keeps_its_own_link",
    ),
    Defence(
        14,
        "a mail makes way only for one that was sent, and whose link serves it",
        "webapp/outbox/outgoing_email.py",
        "        & (binds_nobody | (newer.user_id == older.user_id))\n",
        "",
        "test_a_link_of_one_account_ends_no_mail_of_another",
    ),
    Defence(
        14,
        "strangers' signups leave a fifth for what owners ask for",
        "webapp/delivery/throttle.py",
        "    return max(1, limit.amount // KEPT) if limit.amount > 1 else 0\n",
        "    return 0\n",
        "test_signups_of_strangers_leave_room_for_what_owners_ask_for",
    ),
    Defence(
        14,
        "nobody's thirtieth mail goes before another network's first",
        "webapp/outbox/posting.py",
        "    return min(max(rank, SIGNUP_PRIORITY), LAST_SIGNUP_PRIORITY)\n",
        "    return SIGNUP_PRIORITY\n",
        "test_nobodys_thirtieth_mail_goes_before_another_networks_first",
    ),
    Defence(
        14,
        "guesses at a password count before they are checked",
        "webapp/pages/shared/rate_limits.py",
        "    spend(limit, key)\n    guess = Guess()\n",
        "    check(limit, key)\n    guess = Guess()\n",
        "test_guesses_at_once_are_not_more_than_one_by_one",
    ),
    Defence(
        14,
        "wide networks are counted too",
        "webapp/pages/shared/networks.py",
        "NETWORKS = ((64, 1), (56, 4), (48, 16))\n",
        "NETWORKS = ((64, 1),)\n",
        "test_whoever_has_many_networks_is_counted_by_the_wider_ones_too",
    ),
    Defence(
        14,
        "rubbish in place of an address is not one network for all",
        "webapp/pages/shared/proxies.py",
        ' or networks.read(peer.get("REMOTE_ADDR"))\n',
        "\n",
        "test_a_forwarded_text_that_is_no_address_counts_as_the_peers_own",
    ),
    Defence(
        15,
        "a trial answers to no name of elsewhere",
        "webapp/pages/shared/hosts.py",
        "        app.before_request(_refuse_other_names)\n",
        "",
        "test_a_trial_answers_to_no_name_of_elsewhere",
    ),
    Defence(
        15,
        "no form acts without its token",
        "webapp/pages/shared/forms.py",
        "    class Meta(FlaskForm.Meta):  # noqa: D106 - WTForms' name for a form's options\n",
        "    class Meta(FlaskForm.Meta):  # noqa: D106 - WTForms' name for a form's options\n        csrf = False\n",
        "test_without_a_fresh_csrf_token_the_form_comes_back",
    ),
    Defence(
        15,
        "only a trusted proxy says who asks",
        "webapp/pages/shared/proxies.py",
        '    if proxies := app.config["TRUSTED_PROXIES"]:\n',
        "    if proxies := 1:\n",
        "test_a_forwarded_address_counts_only_from_a_trusted_proxy",
    ),
    Defence(
        16,
        "no other site frames a page",
        "webapp/pages/__init__.py",
        "frame-ancestors 'none'; ",
        "",
        "test_every_page_has_its_headers",
    ),
    Defence(
        16,
        "pages are kept nowhere",
        "webapp/pages/__init__.py",
        '    headers.setdefault("Cache-Control", "no-store")\n',
        "",
        "test_every_page_has_its_headers",
    ),
    Defence(
        17,
        "a link alone changes no address",
        "webapp/pages/account/confirm_email.py",
        "    return (ConfirmForm if is_own else PasswordForm)(**values)\n",
        "    return (ConfirmForm if is_own or not is_own else PasswordForm)(**values)\n",
        "test_elsewhere_the_link_takes_the_password_and_gives_no_session",
    ),
    Defence(
        17,
        "a code counts where it was asked for",
        "webapp/accounts/email_change.py",
        "proof if is_asked_by(proof, session_token) else None",
        "proof",
        "test_the_code_confirms_in_the_session_that_asked_and_in_no_other",
    ),
    Defence(
        17,
        "the worker, not the page, knows that an address is taken",
        "webapp/accounts/email_change.py",
        "    if former := awaited(user):\n        links.void(former, ASKED_AGAIN)\n",
        "    users.find_verified(email_key=address.key) and users.find_verified(email_key=address.key)\n"
        "    if former := awaited(user):\n        links.void(former, ASKED_AGAIN)\n",
        "test_an_account_that_changes_to_an_address_tells_it_from_no_other",
    ),
    Defence(
        17,
        "whoever changed the address stays out",
        "webapp/accounts/email_change.py",
        "    user.password_hash = password_hash\n",
        "",
        "test_the_former_address_is_told_and_puts_itself_back",
    ),
    Defence(
        17,
        "the first of two former addresses has the older right",
        "webapp/accounts/email_change.py",
        'or_(VerifyEmail.purpose != "revoke", VerifyEmail.created_at > proof.created_at)',
        'VerifyEmail.purpose != ""',
        "test_the_first_of_two_former_addresses_has_the_older_right",
    ),
    Defence(
        18,
        "nobody signs out somebody else",
        "webapp/accounts/sessions.py",
        "_revoke(UserSession.user_id == user.id, UserSession.token_hash == token_hash)",
        "_revoke(UserSession.token_hash == token_hash)",
        "test_nobody_signs_out_somebody_else",
    ),
    Defence(
        18,
        "what one takes along does not tell who has an account",
        "webapp/accounts/account.py",
        "    if link is None:\n",
        "    if link is None or link is not None:\n",
        "test_the_owner_of_a_taken_address_is_told_and_gets_no_link",
    ),
    Defence(
        19,
        "mails of who is gone forget their address",
        "webapp/retention.py",
        "        OutgoingEmail.to_address != FORGOTTEN,\n",
        "        OutgoingEmail.to_address == FORGOTTEN,\n",
        "test_a_deleted_account_is_gone_with_all_that_is_its_own",
    ),
    Defence(
        20,
        "who forgot the password is looked up by the worker",
        "webapp/accounts/password_change.py",
        "    email_id = posting.post(\n        to_address=address.mailed,\n",
        "    users.find_by_address(address.key)\n    email_id = posting.post(\n        to_address=address.mailed,\n",
        "test_a_forgotten_password_tells_no_address_from_another",
    ),
    Defence(
        20,
        "a waiting page tells of no mail but its own",
        "webapp/accounts/links.py",
        '        .where(OutgoingEmail.user_id == user.id, VerifyEmail.purpose == "signup")\n',
        "        .where(OutgoingEmail.user_id == user.id)\n",
        "test_the_story_stays_the_same_when_somebody_forgets_the_password_meanwhile",
    ),
    Defence(
        20,
        "looking at a link for a new password does nothing",
        "webapp/pages/sign_in/reset.py",
        "    return _page(proof, ResetForm(",
        "    password_change.reset_password(proof.id, password_hash='')\n    return _page(proof, ResetForm(",
        "test_fifty_looks_at_a_link_for_a_new_password_change_nothing_and_the_click_still_works",
    ),
    Defence(
        20,
        "a link does what it was sent for",
        "webapp/accounts/links.py",
        " or verification.purpose != purpose or ",
        " or ",
        "test_altered_foreign_and_used_links_get_one_and_the_same_404",
    ),
    Defence(
        20,
        "a former address has no part in the account",
        "webapp/accounts/password_change.py",
        "    if proof.user.email_key != proof.email_key:\n",
        "    if False:\n",
        "test_a_link_to_an_address_that_was_changed_shows_and_sets_nothing",
    ),
    Defence(
        21,
        "a new password ends all sessions",
        "webapp/accounts/password_change.py",
        "    sessions.revoke_all(user)\n",
        "",
        "test_a_forgotten_password_is_set_anew_and_its_owner_signs_in_with_it",
    ),
    Defence(
        21,
        "a new password voids the other links",
        "webapp/accounts/password_change.py",
        "    links.void_all(CHANGED,",
        "    (CHANGED,",
        "test_one_reset_consumes_all_other_links_and_those_that_wait",
    ),
    Defence(
        21,
        "changing the password takes the former one",
        "webapp/pages/account/password.py",
        "    if form.validate() and knows_password(user, form.password):\n",
        "    if form.validate():\n",
        "test_who_does_not_know_the_password_changes_nothing_and_is_soon_refused",
    ),
    Defence(
        21,
        "no sign-in outruns a new password",
        "webapp/accounts/sessions.py",
        "    if kept != user.password_hash:\n",
        "    if kept is None:\n",
        "test_a_sign_in_that_a_change_overtook_begins_no_session",
    ),
    Defence(
        5,
        "a hash that cannot be read is a failed sign-in",
        "webapp/accounts/hash_cost.py",
        "    except (Argon2Error, ValueError) as error:\n",
        "    except ZeroDivisionError as error:\n",
        "test_a_hash_that_cannot_be_read_is_a_failed_sign_in_and_told_once",
    ),
    Defence(
        22,
        "who is signed in guesses on a count of its own",
        "webapp/pages/shared/auth.py",
        "rate_limits.guessing(user.email_key, known_by=known_by)",
        "rate_limits.guessing(user.email_key)",
        "test_who_is_signed_in_changes_password_and_address_and_deletes_the_account",
    ),
    Defence(
        22,
        "a used reset link ends the count of failures",
        "webapp/pages/sign_in/reset.py",
        "    rate_limits.forgive(email_addresses.identifier_key(user.email), "
        "email_addresses.identifier_key(user.username))\n",
        "",
        "test_a_link_for_a_new_password_signs_in_and_ends_the_siege",
    ),
    Defence(
        22,
        "a browser that signed in before has a count of its own",
        "webapp/pages/sign_in/login.py",
        ", known_by=known_browser.named(typed)",
        "",
        "test_a_browser_that_signed_in_before_signs_in",
    ),
    Defence(
        22,
        "going on with a signup lets nobody guess on at an account with its name or address",
        "webapp/pages/shared/rate_limits.py",
        "        if guess.ends_count:\n",
        "        if True or guess.ends_count:\n",
        "test_a_signup_with_the_owners_address_lets_nobody_guess_on",
    ),
    Defence(
        22,
        "nobody forges a browser that signed in before",
        "webapp/accounts/tokens.py",
        "    return any(hmac.compare_digest(_seal(key",
        "    return any(True or hmac.compare_digest(_seal(key",
        "test_nobody_forges_a_known_browser",
    ),
    Defence(
        22,
        "a changed password makes every browser unknown",
        "webapp/pages/shared/known_browser.py",
        "user.password_hash if user",
        "user.email_key if user",
        "test_a_changed_password_makes_every_browser_unknown",
    ),
    Defence(
        23,
        "a browser knows its signup by a random value",
        "webapp/accounts/signup.py",
        "VerifyEmail.user_id == User.id).where(VerifyEmail.id == signup_id)",
        "VerifyEmail.user_id == User.id).order_by(User.id).limit(1)",
        "test_a_cookie_whose_number_is_another_persons_by_now_is_nobodys",
    ),
    Defence(
        23,
        "a browser has no part in what was verified elsewhere",
        "webapp/pages/signup/waiting.py",
        "    return user if user is not None and not user.is_email_verified else None\n",
        "    return user\n",
        "test_a_signup_that_its_owner_took_over_is_the_owners_alone",
    ),
    Defence(
        23,
        "who types a code looks again whether it was verified",
        "webapp/accounts/codes.py",
        "    db.session.refresh(user)\n    if user.is_email_verified:\n",
        "    if user.is_email_verified:\n",
        "test_a_code_that_is_typed_while_the_owner_takes_over_is_no_try_of_the_owners",
    ),
    Defence(
        23,
        "a row's number is given out once",
        "migrations/versions/0018_numbers_once.py",
        'TABLES = ("users", ',
        "TABLES = (",
        "test_a_number_is_not_given_out_again_when_its_account_is_deleted_or_purged",
    ),
    Defence(
        23,
        "limits count an account, not its number",
        "webapp/accounts/users.py",
        '        return f"{self.id}:{self.created_at.isoformat()}"\n',
        '        return f"{self.id}"\n',
        "test_a_limit_of_who_is_gone_is_not_the_next_ones",
    ),
    Defence(
        23,
        "operators act on what they could see",
        "webapp/pages/ops/actions.py",
        "    if form.moment is not None:\n",
        "    if form.moment is None:\n",
        "test_an_action_on_many_is_about_those_that_its_page_could_show",
    ),
    Defence(
        24,
        "a link changes no language but that of a browser's pages",
        "webapp/pages/account/overview.py",
        "def show() -> str:\n",
        "def show() -> str:\n    from webapp.db.base import db\n    from webapp.pages.shared import auth, language\n\n"
        "    language.keep(auth.current())\n    db.session.commit()\n",
        "test_a_link_changes_the_language_of_this_browsers_pages_alone",
    ),
    Defence(
        24,
        "the language of emails takes the form's token",
        "webapp/pages/language_switch.py",
        "    if not form.validate() or not",
        "    if not",
        "test_a_language_takes_a_pages_own_button",
    ),
    Defence(
        24,
        "no other site keeps a session alive",
        "webapp/pages/shared/auth.py",
        ' and request.headers.get("Sec-Fetch-Site") != "cross-site":\n',
        ":\n",
        "test_a_link_from_elsewhere_keeps_no_session_alive",
    ),
]
DEFENCES += [
    Defence(
        25,
        "long heads are not read",
        "webapp/pages/__init__.py",
        "    heads.init_app(app)\n",
        "",
        "test_a_head_that_is_longer_than_any_browsers_is_not_read",
    ),
    Defence(
        25,
        "queries of very many parameters are not read",
        "webapp/pages/shared/heads.py",
        ">= PARAMETERS",
        ">= 10000",
        "test_a_query_of_very_many_parameters_is_not_read",
    ),
    Defence(
        25,
        "forms of very many fields are not read",
        "webapp/pages/shared/forms.py",
        "        raise RequestEntityTooLarge\n",
        "        pass\n",
        "test_a_form_of_very_many_fields_is_not_read",
    ),
    Defence(
        25,
        "nothing is judged of a form without its token, or too long",
        "webapp/pages/shared/forms.py",
        "        if not (self._has_token() and are_short(self)):\n            return False\n",
        "",
        "test_a_field_that_is_too_long_is_told_before_anything_is_judged",
    ),
    Defence(
        25,
        "every form costs its network",
        "webapp/pages/shared/forms.py",
        '        rate_limits.spend("RATELIMIT_POST", rate_limits.network())\n',
        "",
        "test_every_form_costs_its_network_of_the_limit_of_all",
    ),
    Defence(
        25,
        "nothing is judged once a limit is spent",
        "webapp/pages/shared/forms.py",
        "            rate_limits.check(self.limit, rate_limits.network())\n",
        "            pass\n",
        "test_once_a_limit_is_spent_nothing_of_a_form_is_judged",
    ),
    Defence(
        25,
        "a password is scored last",
        "webapp/pages/shared/forms.py",
        "super().validate(extra_validators) and self.has_strong_password()",
        "self.has_strong_password() and super().validate(extra_validators)",
        "test_a_password_is_scored_only_once_all_else_is_right",
    ),
    Defence(
        25,
        "zxcvbn gets no more than it has time for",
        "webapp/accounts/passwords.py",
        "    while _readings(judged) * len(judged) ** 2 > GUESSED_WORK:\n",
        "    while False:\n",
        "test_zxcvbn_reads_no_password_in_more_ways_than_it_has_time_for",
    ),
    Defence(
        25,
        "no long password is normalized",
        "webapp/accounts/passwords.py",
        "    if len(password) > MAX_LENGTH:\n        # A long",
        "    if False:\n        # A long",
        "test_no_text_of_any_length_is_normalized_by_whoever_asks",
    ),
    Defence(
        26,
        "networks take turns",
        "webapp/pages/shared/turns.py",
        "            self.waiting[network] = calls\n",
        "            self.waiting = {network: calls, **self.waiting}\n",
        "test_of_those_that_wait_one_of_each_network_after_the_other_is_called",
    ),
    Defence(
        26,
        "who waits takes no thread",
        "webapp/pages/shared/turns.py",
        "    app.before_request(_wait_for_turn)\n",
        "    app.before_request(lambda: None)\n",
        "test_sixty_sign_ins_of_one_network_hold_up_nobody_else",
    ),
    Defence(
        26,
        "there is room for so many to wait",
        "webapp/pages/shared/turns.py",
        "                raise Crowded\n",
        "                pass\n",
        "test_of_the_room_to_wait_in_each_network_has_its_share",
    ),
    Defence(
        26,
        "who hung up takes no turn",
        "gunicorn.conf.py",
        "                if has_hung_up(conn.sock):",
        "                if False:",
        "test_who_hangs_up_while_waiting_takes_no_turn",
    ),
]


def main() -> int:
    """Return 1 when a test passes without its defence, or fails with it."""
    console = Console()
    if not passes(None):
        console.print("The tests fail with every defence in place: see make test.")
        return 1
    table = Table("promise", "taken out", "the test that fails then", "")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        missed = [defence for defence, unnoticed in zip(DEFENCES, pool.map(passes, DEFENCES), strict=True) if unnoticed]
    for defence in DEFENCES:
        table.add_row(str(defence.number), defence.what, defence.needs, "MISSED" if defence in missed else "fails")
    console.print(table)
    console.print(f"{len(DEFENCES) - len(missed)} of {len(DEFENCES)} noticed")
    return 1 if missed else 0


def passes(without: Defence | None) -> bool:
    """Return whether the tests pass without this defence; without none of them, all of theirs."""
    wanted = [without] if without else DEFENCES
    names = " or ".join(dict.fromkeys(defence.needs for defence in wanted))
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "instance", "__pycache__"))
        if without:
            file = copy / without.file
            text = file.read_text(encoding="utf-8")
            if text.count(without.present) != 1:
                sys.exit(f"{without.file} does not hold this once any more:\n{without.present}")
            file.write_text(text.replace(without.present, without.absent), encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "--every-input",
            "-k",
            f"({names}) and not servers",
            "tests",
        ]
        ended = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    if ended.returncode not in {0, 1}:
        sys.exit(f"no test ran for {names}:\n{ended.stdout}{ended.stderr}")
    return ended.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
