/*
 * One mail's way through the outbox: two mails, two workers, the relay, an operator, and what may happen to them.
 * docs/one-mail.md names what does each step; tests/model/__main__.py lets spin look at them.
 *
 * A step is a `d_step`: what others see at once, such as a statement that commits by itself, or one end of a
 * transaction.
 *
 * Time goes by in periods. A new lease has two: FRESH, with enough left for the final dot, and LATE, without. Whoever
 * is not frozen does its part before time goes on; the answer to a final dot may take LONGEST_ANSWER.
 *
 * Faults are few (FAULTS, of any kind, at any moment), and so are acts of people (ACTS). So each run ends, and `quiet`
 * looks at what is left.
 *
 * Each NO_… takes out one fence; `must` says which property breaks.
 */

#ifndef FAULTS
#define FAULTS 2
#endif
#ifndef ACTS
#define ACTS 1
#endif

#ifndef ATTEMPTS
#define ATTEMPTS 4
#endif

#define OLDER 0
#define NEWER 1
#define NOBODY 0

/* Of a lease, and of a due time; AHEAD is so far ahead that only a clock that was set back explains it. */
#define OVER 0
#define LATE 1
#define FRESH 2
#define LATER 0
#define NOW 1
#define AHEAD 3

/* What wakes a worker. */
#define HINT 1
#define PROBE 2

/* Of the answer to a final dot, in periods. */
#define LONGEST_ANSWER 2

#define MAX_UNCONFIRMED 3

mtype:status = { unposted, queued, sending, sent, dead, canceled, superseded };
mtype:place = { idle, claiming, held, dotted, recording };
mtype:outcome = { nothing, deferral, refusal, trouble, silence };
mtype:frozen = { no, awhile, forever };

typedef Mail {
    mtype:status status;
    byte token, lock;  /* a worker, or NOBODY */
    byte lease, due, hint, attempts, unconfirmed;
    bool in_doubt, is_renamed;
    /* What the properties speak of; no column. */
    byte copies;  /* how many may still be sent: one, and one more for each excuse */
    byte silences;
    bool arrived, barred;  /* it may have arrived; an operator canceled it */
};

typedef Worker {
    mtype:place at;
    mtype:outcome outcome;
    mtype:frozen frozen;
    byte mail, left;  /* of the lease, as this worker believes */
    byte waited;  /* periods since the final dot */
    bool misled;  /* the database's clock was set ahead, or it forgot the claim: what is left is no longer so */
};

Mail mail[2];
Worker worker[2];

bool twins;  /* the second mail keeps the first one's promise; else they are rivals for one address */
byte odd;  /* the mail whose recipient's server asks to come back, or is silent after the dot */
bool filled;  /* the address got a mail in this period */
bool open;  /* the breaker */
byte faults = FAULTS;
byte acts = ACTS;

#define ME worker[w]
#define IS(place) (ME.frozen == no && ME.at == place)
#define HOLDS(w, m) (mail[m].status == sending && mail[m].token == w + 1)
#define HELD(m) HOLDS(w, m)
#define DUE(m) (mail[m].status == queued && mail[m].due == NOW)
#define ACTIVE(m) (mail[m].status == queued || mail[m].status == sending)
#define LEASED(m) (mail[m].status == sending || mail[m].lease != OVER)
#define FROZEN(holder) (holder != NOBODY && worker[holder - 1].frozen != no)

#define must(what, condition) \
    if :: (condition) -> skip :: else -> printf("BROKEN: "); printf(what); printf("\n"); assert(false) fi

/* ---- The fences ---- */

#ifdef NO_CLAIM_FENCE  /* chooses in one statement, and writes in another that asks nothing */
#define UNLOCKED(m) true
#define STILL_LOCKED(m) true
#define LOCK(m) skip
#else
#define UNLOCKED(m) (mail[m].lock == NOBODY)
#define STILL_LOCKED(m) (mail[m].lock == w + 1)
#define LOCK(m) mail[m].lock = w + 1
#endif

#ifdef NO_MARGIN_FENCE
#define MAY_FINISH true
#else
#define MAY_FINISH (ME.left == FRESH)
#endif

#ifdef NO_RENEWAL_FENCE
#define RENEWS(w) false
#else
#define RENEWS(w) (worker[w].left != FRESH && HOLDS(w, worker[w].mail))
#endif

#ifdef NO_TOKEN_FENCE
#define MAY_WRITE(m) true
#else
#define MAY_WRITE(m) HELD(m)
#endif

#ifdef NO_LEASE_FENCE
#define REAPABLE(m) (mail[m].status == sending)
#else
#define REAPABLE(m) (mail[m].status == sending && mail[m].lease == OVER)
#endif

#ifdef NO_CLOCK_FENCE
#define WRONG(m) false
#else
#define WRONG(m) (mail[m].status == sending && mail[m].lease == AHEAD || mail[m].status == queued && mail[m].due == AHEAD)
#endif

#ifdef NO_UNCONFIRMED_FENCE
#define DOUBTED(m) false
#else
#define DOUBTED(m) (mail[m].unconfirmed >= MAX_UNCONFIRMED)
#endif

#ifdef NO_SUCCESSOR_FENCE
#define HAS_SUCCESSOR(m) false
#else
#define HAS_SUCCESSOR(m) (twins && ACTIVE(1 - m))
#endif

/* ---- A worker ---- */

/* One idle worker is like another: the first takes it. */
#define FREE(w) (worker[w].frozen == no && worker[w].at == idle)
#define CLAIMABLE(m) (DUE(m) && UNLOCKED(m) && (!open || mail[m].hint == PROBE))

/* One more copy is nobody's fault; more than there are faults would tell nothing new. */
#define excuse(m) if :: mail[m].copies <= FAULTS -> mail[m].copies++ :: else -> skip fi

/* Of a mail that cannot come back nothing matters any more but how it ended. */
#define forget(m) \
    if \
    :: acts == 0 && !ACTIVE(m) && mail[m].status != unposted -> \
        mail[m].attempts = 0; mail[m].unconfirmed = 0; mail[m].silences = 0; \
        mail[m].in_doubt = mail[m].in_doubt && mail[m].arrived \
    :: else -> skip \
    fi

inline rest(w) {
    ME.at = idle; ME.outcome = nothing; ME.mail = 0; ME.left = OVER; ME.waited = 0; ME.misled = false
}

inline release(m, new_status, when) {
    mail[m].status = new_status; mail[m].token = NOBODY; mail[m].lock = NOBODY; mail[m].lease = OVER;
    mail[m].due = when; mail[m].hint = 0;
    forget(m)
}

/*
 * Here by the mail's own hint; in the code any hint claims any mail. That leaves no claim out: `wake` may hint each that
 * is due, whenever it can be claimed.
 */
inline claim(m) {
    d_step {
        IS(idle) && (w == 0 || !FREE(0)) && mail[m].hint && CLAIMABLE(m) ->
        printf("worker %d claims mail %d\n", w, m);
        LOCK(m);
        mail[m].hint = 0; mail[m].lease = FRESH;
        ME.at = claiming; ME.mail = m; ME.left = FRESH
    }
}

/* Over its address' limit, or while a newer one waits behind that limit. */
#define MUST_WAIT(m) (!twins && (filled || mail[1 - m].status == sending))

inline commit_claim(m) {
    d_step {
        IS(claiming) && ME.mail == m ->
        if
        :: !STILL_LOCKED(m) -> printf("worker %d finds its claim undone\n", w); rest(w)
        :: STILL_LOCKED(m) && MUST_WAIT(m) ->
            printf("worker %d lets mail %d wait for its address\n", w, m);
            release(m, queued, LATER);
#ifdef NO_SUPERSEDE_FENCE
            if :: m == NEWER && mail[OLDER].status == queued -> release(OLDER, superseded, LATER) :: else -> skip fi;
#endif
            rest(w)
        :: else ->
            printf("worker %d holds mail %d\n", w, m);
            must("canceled mails stay so", !mail[m].barred);
            mail[m].status = sending; mail[m].token = w + 1; mail[m].lock = NOBODY;
            ME.at = held
        fi
    }
}

/* At a failover the new server may not have it. */
inline lose_claim(m) {
    d_step {
        faults && IS(claiming) && ME.mail == m && STILL_LOCKED(m) && !MUST_WAIT(m) ->
        printf("worker %d holds mail %d, and the database forgets it\n", w, m);
        faults--; excuse(m); ME.misled = true; mail[m].lock = NOBODY; mail[m].lease = OVER;
        ME.at = held
    }
}

#define RIVAL worker[1 - w]

inline finish(m) {
    d_step {
        IS(held) && ME.mail == m && MAY_FINISH ->
        printf("worker %d sends the final dot of mail %d\n", w, m);
        must("one copy, or an excuse", mail[m].copies > 0);
        must("one holder past the dot", ME.misled || RIVAL.misled || !(RIVAL.at == dotted && RIVAL.mail == m && RIVAL.left != OVER));
        must("one Message-ID", !(mail[m].in_doubt && mail[m].is_renamed));
        mail[m].copies--;
        if :: HELD(m) -> mail[m].arrived = true :: else -> skip fi;
        ME.at = dotted
    }
}

/* Too little of the lease is left. */
inline requeue(m) {
    d_step {
        IS(held) && ME.mail == m && !MAY_FINISH ->
        printf("worker %d lets go of mail %d\n", w, m);
        if :: MAY_WRITE(m) -> release(m, queued, NOW) :: else -> skip fi;
        rest(w)
    }
}

/* While it waits for the answer. */
inline renew(m) {
    d_step {
        IS(dotted) && ME.mail == m && RENEWS(w) ->
        printf("worker %d renews its lease of mail %d\n", w, m);
        mail[m].lease = FRESH; ME.left = FRESH
    }
}

inline settle(m) {
    d_step {
        IS(dotted) && ME.mail == m ->
        if
        :: MAY_WRITE(m) ->
            printf("worker %d settles mail %d\n", w, m);
            must("outcomes are the holder's", HELD(m));
            release(m, sent, LATER);
            mail[m].in_doubt = false; mail[m].arrived = false;
            filled = !twins && ACTIVE(1 - m); open = false;
            if
            :: !twins && m == NEWER && mail[OLDER].status == queued && mail[OLDER].lock == NOBODY ->
                release(OLDER, superseded, LATER)
            :: else -> skip
            fi
        :: else -> printf("worker %d lost mail %d, which was sent\n", w, m)
        fi;
        rest(w)
    }
}

inline lose_settle(m) {
    d_step {
        faults && IS(dotted) && ME.mail == m && HELD(m) ->
        printf("worker %d settles mail %d, and the database forgets it\n", w, m);
        faults--; excuse(m);
        rest(w)
    }
}

#define ANSWERS(how) ( \
    ME.at == dotted && how == silence && m == odd \
    || ME.at == held && (how == deferral && m == odd || how == refusal || how == trouble && faults))

/* Anything but a 250: the first half of a transaction. */
inline fail(m, how) {
    d_step {
        ME.frozen == no && ME.mail == m && ANSWERS(how) ->
        if
        :: how == deferral -> printf("worker %d gets a 4xx for mail %d\n", w, m)
        :: how == refusal -> printf("worker %d gets a 5xx for mail %d\n", w, m)
        :: how == trouble -> printf("worker %d is refused for mail %d, as any mail would be\n", w, m); faults--
        :: how == silence -> printf("worker %d gets no answer to the final dot of mail %d\n", w, m)
        fi;
        if :: ME.at == dotted -> excuse(m) :: else -> skip fi;
        if
        :: MAY_WRITE(m) -> mail[m].lock = w + 1; ME.outcome = how; ME.at = recording; ME.waited = 0
        :: else -> printf("worker %d lost mail %d\n", w, m); rest(w)
        fi
    }
}

inline record(m) {
    d_step {
        IS(recording) && ME.mail == m ->
        if
        :: mail[m].lock != w + 1 -> printf("worker %d finds its record undone\n", w)
        :: else ->
            printf("worker %d records it\n", w);
            must("outcomes are the holder's", HELD(m));
            if
            :: ME.outcome == deferral ->
                mail[m].attempts++; open = false;
                if
                :: mail[m].attempts >= ATTEMPTS -> release(m, dead, LATER)
                :: else -> release(m, queued, LATER)
                fi
            :: ME.outcome == refusal -> open = false; release(m, dead, LATER)
            :: ME.outcome == trouble -> open = true; release(m, queued, LATER)
            :: ME.outcome == silence ->
                mail[m].attempts++; mail[m].unconfirmed++; mail[m].silences++;
                must("at most two more tries in doubt", mail[m].silences <= MAX_UNCONFIRMED);
#ifdef NO_LAST_DOUBT_FENCE
                mail[m].in_doubt = mail[m].in_doubt || mail[m].attempts < ATTEMPTS;
#else
                mail[m].in_doubt = true;
#endif
                if
                :: DOUBTED(m) || mail[m].attempts >= ATTEMPTS ->
                    release(m, dead, LATER)
                :: else -> release(m, queued, LATER)
                fi
            fi
        fi;
        rest(w)
    }
}

proctype Worker_(byte w) {
    do
    :: claim(OLDER) :: claim(NEWER)
    :: commit_claim(OLDER) :: commit_claim(NEWER)
    :: lose_claim(OLDER) :: lose_claim(NEWER)
    :: finish(OLDER) :: finish(NEWER)
    :: requeue(OLDER) :: requeue(NEWER)
    :: renew(OLDER) :: renew(NEWER)
    :: settle(OLDER) :: settle(NEWER)
    :: lose_settle(OLDER) :: lose_settle(NEWER)
    :: fail(OLDER, deferral) :: fail(NEWER, deferral)
    :: fail(OLDER, refusal) :: fail(NEWER, refusal)
    :: fail(OLDER, trouble) :: fail(NEWER, trouble)
    :: fail(OLDER, silence) :: fail(NEWER, silence)
    :: record(OLDER) :: record(NEWER)
    od
}

/* ---- The relay ---- */

#ifdef NO_SKIP_FENCE
#define SKIPS(m) false
#else
#define SKIPS(m) (mail[m].lock != NOBODY)
#endif

inline reap(m) {
    d_step {
        REAPABLE(m) && !SKIPS(m) && mail[m].token != NOBODY ->
        printf("the relay takes mail %d back\n", m);
        must("nobody waits for the frozen", !FROZEN(mail[m].lock));
        release(m, queued, NOW);
#ifndef NO_DOUBT_FENCE
        mail[m].in_doubt = true
#endif
    }
}

/* What lies further ahead than it can counts as now. */
inline mend(m) {
    d_step {
        WRONG(m) && mail[m].lock == NOBODY ->
        printf("the relay mends a time of mail %d\n", m);
        if
        :: mail[m].status == sending -> mail[m].lease = FRESH
        :: else -> mail[m].due = NOW
        fi
    }
}

inline wake(m) {
    d_step {
        !open && DUE(m) && mail[m].lock == NOBODY && mail[m].hint == 0 ->
        printf("the relay hints mail %d\n", m);
        mail[m].hint = HINT
    }
}

/* While the breaker is open: the mails that were refused only where there is no other. */
inline probe(m) {
    d_step {
        open && DUE(m) && mail[m].lock == NOBODY && mail[m].hint != PROBE ->
        printf("the relay probes with mail %d\n", m);
        mail[m].hint = PROBE
    }
}

proctype Relay() {
    do
    :: reap(OLDER) :: reap(NEWER)
    :: mend(OLDER) :: mend(NEWER)
#ifndef NO_RELAY_FENCE
    :: wake(OLDER) :: wake(NEWER)
#endif
#ifndef NO_PROBE_FENCE
    :: probe(OLDER) :: probe(NEWER)
#endif
    od
}

/* ---- People ---- */

inline cancel(m) {
    d_step {
        acts && (mail[m].status == queued || mail[m].status == dead) && mail[m].lock == NOBODY ->
        printf("the operator cancels mail %d\n", m);
        acts--; mail[m].barred = true; release(m, canceled, LATER); forget(1 - m)
    }
}

#ifdef NO_CANCELED_FENCE
#define REVIVABLE(m) (mail[m].status == dead || mail[m].status == canceled)
#else
#define REVIVABLE(m) (mail[m].status == dead)
#endif

inline revive(m) {
    d_step {
        acts && REVIVABLE(m) && !HAS_SUCCESSOR(m) && mail[m].lock == NOBODY ->
        printf("the operator revives mail %d\n", m);
        must("one mail a promise", !twins || !ACTIVE(1 - m));
        acts--; mail[m].attempts = 0; mail[m].unconfirmed = 0; mail[m].silences = 0;
        release(m, queued, NOW); forget(1 - m)
#ifdef NO_IDENTITY_FENCE
        ; mail[m].is_renamed = true
#endif
    }
}

/* Once the first is over, its person asks for another. */
inline resend() {
    d_step {
        twins && mail[NEWER].status == unposted && !ACTIVE(OLDER) ->
        printf("the person asks for another mail\n");
        mail[NEWER].status = queued; mail[NEWER].due = NOW; mail[NEWER].hint = HINT
    }
}

proctype People() {
    do
    :: cancel(OLDER) :: cancel(NEWER)
    :: revive(OLDER) :: revive(NEWER)
    :: resend()
    od
}

/* ---- What may happen ---- */

/* What a worker's open transaction wrote is undone. */
inline unlock(w) {
    if
    :: ME.at == claiming && mail[ME.mail].lock == w + 1 -> mail[ME.mail].lock = NOBODY; mail[ME.mail].lease = OVER
    :: ME.at == recording && mail[ME.mail].lock == w + 1 -> mail[ME.mail].lock = NOBODY
    :: else -> skip
    fi
}

inline crash(w) {
    d_step {
        faults && ME.at != idle ->
        printf("worker %d dies\n", w);
        faults--;
        if :: ME.at == dotted -> excuse(ME.mail) :: else -> skip fi;
        unlock(w);
        ME.frozen = no; rest(w)
    }
}

inline freeze(w, how) {
    d_step {
        faults && ME.frozen == no && ME.at != idle && (how == awhile || RIVAL.frozen != forever) ->
        if
        :: how == awhile -> printf("worker %d freezes for a while\n", w)
        :: how == forever -> printf("worker %d freezes for ever\n", w)
        fi;
        faults--; ME.frozen = how;
        if :: ME.at == dotted -> excuse(ME.mail) :: else -> skip fi
    }
}

inline thaw(w) {
    d_step {
        ME.frozen == awhile ->
        printf("worker %d goes on\n", w);
#ifdef NO_BEGUN_FENCE  /* it counts from when it heard of its claim */
        if :: ME.at == held -> ME.left = FRESH :: else -> skip fi;
#endif
        ME.frozen = no
    }
}

/* The server's bound on idle transactions. */
inline end_transaction(w) {
    d_step {
        ME.frozen != no && (ME.at == claiming || ME.at == recording) && mail[ME.mail].lock == w + 1 ->
        printf("the database ends the transaction of worker %d\n", w);
        unlock(w)
    }
}

inline lose_hint(m) {
    d_step {
        faults && mail[m].hint ->
        printf("the broker loses the hint of mail %d\n", m);
        faults--; mail[m].hint = 0
    }
}

/* Whoever holds a mail may now do so beside another. */
inline excuse_holder(m, w) {
    if :: ME.at != idle && ME.mail == m && ME.left != OVER && LEASED(m) -> excuse(m); ME.misled = true :: else -> skip fi
}

inline step_ahead() {
    d_step {
        faults && (LEASED(OLDER) || LEASED(NEWER)) ->
        printf("the clock is set ahead\n");
        faults--;
        excuse_holder(OLDER, 0); excuse_holder(OLDER, 1); excuse_holder(NEWER, 0); excuse_holder(NEWER, 1);
        mail[OLDER].lease = OVER; mail[NEWER].lease = OVER;
        if :: mail[OLDER].status == queued -> mail[OLDER].due = NOW :: else -> skip fi;
        if :: mail[NEWER].status == queued -> mail[NEWER].due = NOW :: else -> skip fi
    }
}

inline fall_behind(m) {
    if :: LEASED(m) && mail[m].lease != OVER -> mail[m].lease = AHEAD :: else -> skip fi;
    if :: mail[m].status == queued -> mail[m].due = AHEAD :: else -> skip fi
}

inline step_back() {
    d_step {
        faults && (ACTIVE(OLDER) || ACTIVE(NEWER)) ->
        printf("the clock is set back\n");
        faults--;
        fall_behind(OLDER); fall_behind(NEWER)
    }
}

/* ---- Time ---- */

#ifdef NO_TRANSACTION_FENCE
#define BOUNDED(w) true
#else
#define BOUNDED(w) (mail[OLDER].lock != w + 1 && mail[NEWER].lock != w + 1)
#endif

/* For an answer that may take longer than the rest of a lease. */
#define WAITS(w) (worker[w].at == dotted && worker[w].waited < LONGEST_ANSWER && !RENEWS(w))
#define PROMPT(w) (worker[w].frozen != no || worker[w].at == idle || WAITS(w))
#define SETTLED(m) (!(DUE(m) && mail[m].lock == NOBODY) && !(REAPABLE(m) && !SKIPS(m)) && !WRONG(m))
#define MOVES(m) (mail[m].status == queued && mail[m].due == LATER || mail[m].lease == LATE || mail[m].lease == FRESH)

inline age_mail(m) {
    if :: mail[m].lease == LATE || mail[m].lease == FRESH -> mail[m].lease-- :: else -> skip fi;
    if :: mail[m].status == queued && mail[m].due == LATER -> mail[m].due = NOW :: else -> skip fi
}

#ifdef NO_SUSPEND_FENCE  /* a clock that stands still with its machine */
#define AGES(w) (worker[w].frozen == no)
#else
#define AGES(w) true
#endif

inline age_worker(w) {
    if :: AGES(w) && ME.left != OVER -> ME.left-- :: else -> skip fi;
    if :: ME.at == dotted && ME.waited < LONGEST_ANSWER -> ME.waited++ :: else -> skip fi
}

inline tick() {
    d_step {
        PROMPT(0) && PROMPT(1) && BOUNDED(0) && BOUNDED(1) && SETTLED(OLDER) && SETTLED(NEWER) && (MOVES(OLDER) || MOVES(NEWER)) ->
        printf("time goes on\n");
        filled = false;
        age_mail(OLDER); age_mail(NEWER);
        age_worker(0); age_worker(1)
    }
}

proctype World() {
    do
    :: crash(0) :: crash(1)
    :: freeze(0, awhile) :: freeze(1, awhile)
    :: freeze(0, forever) :: freeze(1, forever)
    :: thaw(0) :: thaw(1)
#ifndef NO_TRANSACTION_FENCE
    :: end_transaction(0) :: end_transaction(1)
#endif
    :: lose_hint(OLDER) :: lose_hint(NEWER)
    :: step_ahead() :: step_back()
    :: tick()
    od
}

#define ENDED_WELL(m) (!mail[m].arrived || mail[m].status == sent || mail[m].in_doubt)

/* Nothing else can happen. */
inline quiet() {
    d_step {
        timeout ->
        must("nothing is stuck", !ACTIVE(OLDER) && !ACTIVE(NEWER));
        must("what may have arrived ends sent, or in doubt", ENDED_WELL(OLDER) && ENDED_WELL(NEWER));
        must("what made way is served", mail[OLDER].status != superseded || mail[NEWER].status == sent)
    }
}

init {
    atomic {
        if :: twins = true :: twins = false fi;
        if :: odd = OLDER :: odd = NEWER fi;
        mail[OLDER].status = queued; mail[OLDER].due = NOW; mail[OLDER].hint = HINT; mail[OLDER].copies = 1;
        if
        :: twins -> mail[NEWER].status = unposted
        :: else -> mail[NEWER].status = queued; mail[NEWER].due = NOW; mail[NEWER].hint = HINT
        fi;
        mail[NEWER].copies = 1;
        if :: !twins -> filled = true :: filled = false fi;
        worker[0].at = idle; worker[1].at = idle; worker[0].outcome = nothing; worker[1].outcome = nothing;
        worker[0].frozen = no; worker[1].frozen = no;
        run Worker_(0); run Worker_(1); run Relay(); run People(); run World()
    }
    quiet()
}
