// The memory model between two CPUs (SDM vol. 3 section 9.2.3; the names are those of the literature, e.g. Owens, Sarkar and
// Sewell, "A better x86 memory model: x86-TSO"): what two CPUs must not see of each other's loads and stores, each many times,
// with the CPUs running freely over rows of places. Loads and stores are single instructions of the compiler's.
#include "long.h"

enum { PLACES = 512, TURNS = 40 };
static struct {
    volatile u64 x ALIGNED(64);
    volatile u64 y ALIGNED(64);
} places[PLACES] ALIGNED(4096);
static volatile u64 r0[PLACES], r1[PLACES], r2[PLACES], r3[PLACES];
static volatile u64 pairs[2] ALIGNED(16);
static volatile u32 torn;

#define X places[i].x
#define Y places[i].y
#define R0 r0[i]
#define R1 r1[i]
#define R2 r2[i]
#define R3 r3[i]
#define X_ALIAS (*(volatile u64 *)USER_PTR(&places[i].x))
#define Y_ALIAS (*(volatile u64 *)USER_PTR(&places[i].y))
#define MFENCE asm volatile("mfence" ::: "memory")
#define LOCKED_NOTHING asm volatile("lock orl $0, (%%rsp)" ::: "memory", "cc")
#define XCHG(place, value)                                                                                           \
    do {                                                                                                             \
        u64 old = value;                                                                                             \
        asm volatile("xchg %0, %1" : "+r"(old), "+m"(place)::"memory");                                              \
    } while (0)
#define XADD(place, value)                                                                                           \
    ({                                                                                                               \
        u64 old = value;                                                                                             \
        asm volatile("lock xadd %0, %1" : "+r"(old), "+m"(place)::"memory", "cc");                                   \
        old;                                                                                                         \
    })
#define CMPXCHG(place, from, to)                                                                                     \
    ({                                                                                                               \
        u64 old = from;                                                                                              \
        asm volatile("lock cmpxchg %2, %1" : "+a"(old), "+m"(place) : "r"((u64)(to)) : "memory", "cc");              \
        old;                                                                                                         \
    })

// How far each CPU is, on lines of their own.
static struct {
    volatile u64 at ALIGNED(64);
} reached[2] ALIGNED(128);
// Lets the other CPU come as far, if it runs at all now, and longer at the start: only what happens at the same time can
// come out of order.
#define MEET(self)                                                                                                   \
    do {                                                                                                             \
        reached[self].at = i + 1;                                                                                    \
        for (u32 spin = i ? 60 : 1 << 16; spin && reached[1 - self].at <= i; spin--) {                               \
        }                                                                                                            \
    } while (0)

// What the first CPU does with each place, what the second does, and what must not have come of it.
#define LITMUS(name, first, second, forbidden)                                                                       \
    static void name##_first(void) {                                                                                 \
        for (u32 i = 0; i < PLACES; i++) {                                                                           \
            MEET(0);                                                                                                 \
            first;                                                                                                   \
        }                                                                                                            \
    }                                                                                                                \
    static void name##_second(void) {                                                                                \
        for (u32 i = 0; i < PLACES; i++) {                                                                           \
            MEET(1);                                                                                                 \
            second;                                                                                                  \
        }                                                                                                            \
    }                                                                                                                \
    static int name##_came_out(u32 i) { return forbidden; }

LITMUS(mp, X = 1; Y = 1, R0 = Y; R1 = X, R0 == 1 && R1 == 0)
LITMUS(mp_alias, X_ALIAS = 1; Y = 1, R0 = Y_ALIAS; R1 = X, R0 == 1 && R1 == 0)
LITMUS(mp_locked, X = 1; XADD(Y, 1), R0 = CMPXCHG(Y, 7, 8); R1 = X, R0 == 1 && R1 == 0)
LITMUS(sb, X = 1; R0 = Y, Y = 1; R1 = X, R0 == 0 && R1 == 0)
LITMUS(sb_mfence, X = 1; MFENCE; R0 = Y, Y = 1; MFENCE; R1 = X, R0 == 0 && R1 == 0)
LITMUS(sb_locked_nothing, X = 1; LOCKED_NOTHING; R0 = Y, Y = 1; MFENCE; R1 = X, R0 == 0 && R1 == 0)
LITMUS(sb_xchg, XCHG(X, 1); R0 = Y, XCHG(Y, 1); R1 = X, R0 == 0 && R1 == 0)
LITMUS(sb_xadd, XADD(X, 1); R0 = Y, CMPXCHG(Y, 0, 1); R1 = X, R0 == 0 && R1 == 0)
LITMUS(sb_alias, X_ALIAS = 1; MFENCE; R0 = Y, Y_ALIAS = 1; MFENCE; R1 = X, R0 == 0 && R1 == 0)
LITMUS(lb, R0 = X; Y = 1, R1 = Y; X = 1, R0 == 1 && R1 == 1)
LITMUS(s, X = 2; Y = 1, R0 = Y; X = 1, R0 == 1 && X == 2)
LITMUS(r, X = 1; Y = 1, Y = 2; R0 = X, Y == 2 && R0 == 0)
LITMUS(r_mfence, X = 1; Y = 1, Y = 2; MFENCE; R0 = X, Y == 2 && R0 == 0)
LITMUS(two_two_w, X = 1; Y = 2, Y = 1; X = 2, X == 1 && Y == 1)
LITMUS(co_rr, X = 1, R0 = X; R1 = X, R0 == 1 && R1 == 0)
LITMUS(co_ww, X = 1; X = 2, R0 = X; R1 = X, X != 2 || R0 > R1)
LITMUS(co_rw, R0 = X; X = 1, X = 2, R0 == 1 || (R0 == 2 && X == 2))
LITMUS(co_wr, X = 1; R0 = X, X = 2; R1 = X, R0 == 2 && R1 == 1)
// Each CPU sees its own store before the other's (what IRIW's readers would do on CPUs of their own).
LITMUS(sb_forwarded, X = 1; R0 = X; R1 = Y, Y = 1; R2 = Y; R3 = X, R0 != 1 || R2 != 1)
LITMUS(sb_forwarded_fenced, X = 1; R0 = X; MFENCE; R1 = Y, Y = 1; R2 = Y; MFENCE; R3 = X, R1 == 0 && R3 == 0)
// Locked operations on one place come one after the other, and none is lost.
LITMUS(xadd_xadd, R0 = XADD(X, 1), R1 = XADD(X, 1), X != 2 || R0 == R1 || R0 + R1 != 1)
LITMUS(cmpxchg_once, R0 = CMPXCHG(X, 0, 1), R1 = CMPXCHG(X, 0, 2), !((R0 == 0 && R1 == 1 && X == 1) || (R0 == 2 && R1 == 0 && X == 2)))
LITMUS(inc_dec, asm volatile("lock incq %0" : "+m"(X)::"cc"), asm volatile("lock decq %0" : "+m"(X)::"cc"), X != 0)
LITMUS(bits, asm volatile("lock btsq $3, %0" : "+m"(X)::"cc"), asm volatile("lock btsq $40, %0" : "+m"(X)::"cc"), X != (1ull << 3 | 1ull << 40))

// Eight bytes are stored and loaded as one, sixteen by CMPXCHG16B.
LITMUS(whole, X = i & 1 ? ~0ull : 0x0123456789abcdefull, R0 = X; R1 = X,
       (R0 && R0 != (i & 1 ? ~0ull : 0x0123456789abcdefull)) || (R0 && R1 != R0))
static void exchange_pair(u64 to) {
    u64 low = pairs[0], high = pairs[1];
    asm volatile("lock cmpxchg16b %2" : "+a"(low), "+d"(high), "+m"(pairs) : "b"(to), "c"(~to) : "memory", "cc");
    if (low != ~high)
        torn = torn + 1;
}
static void pair_first(void) {
    for (u64 i = 0; i < PLACES; i++)
        exchange_pair(i * 0x100000001ull);
}
static void pair_second(void) {
    for (u64 i = 0; i < PLACES; i++)
        exchange_pair(i << 48 | i);
}

static const struct test {
    const char *name;
    void (*run[2])(void);
    int (*came_out)(u32 i);
    int allowed;
} tests[] = {
#define TEST(text, name) {text, {name##_first, name##_second}, name##_came_out, 0}
    TEST("MP: stores out of order", mp),
    TEST("MP: through aliases", mp_alias),
    TEST("MP: by locked operations", mp_locked),
    {"SB: both zero (allowed)", {sb_first, sb_second}, sb_came_out, 1},
    TEST("SB with MFENCE: both zero", sb_mfence),
    TEST("SB with a locked operation elsewhere: both zero", sb_locked_nothing),
    TEST("SB by XCHG: both zero", sb_xchg),
    TEST("SB by XADD and CMPXCHG: both zero", sb_xadd),
    TEST("SB with MFENCE through aliases: both zero", sb_alias),
    TEST("LB: both one", lb),
    TEST("S", s),
    {"R (allowed)", {r_first, r_second}, r_came_out, 1},
    TEST("R with MFENCE", r_mfence),
    TEST("2+2W", two_two_w),
    TEST("CoRR", co_rr),
    TEST("CoWW", co_ww),
    TEST("CoRW", co_rw),
    TEST("CoWR", co_wr),
    TEST("SB forwarded: an own store not seen", sb_forwarded),
    TEST("SB forwarded with MFENCE: both zero", sb_forwarded_fenced),
    TEST("two XADD: one lost", xadd_xadd),
    TEST("two CMPXCHG: both or none", cmpxchg_once),
    TEST("INC and DEC: one lost", inc_dec),
    TEST("two BTS: one lost", bits),
    TEST("eight bytes in parts", whole),
};

static const struct test *volatile current;
static volatile u32 begun, ended;

static void other_cpu(u32 number) {
    (void)number;
    for (u32 seen = 0;;) {
        // Without PAUSE, which may give the host's processor away: then both CPUs take turns on one.
        while (begun == seen) {
        }
        seen = begun;
        current->run[1]();
        __atomic_store_n(&ended, seen, __ATOMIC_SEQ_CST);
    }
}

static void turn(const struct test *test) {
    current = test;
    reached[0].at = reached[1].at = 0;
    __atomic_fetch_add(&begun, 1, __ATOMIC_SEQ_CST);
    test->run[0]();
    for (u32 spin = 1 << 16; spin && ended != begun; spin--) {
    }
    WAIT_FOR(ended == begun);
    if (ended != begun)
        check("the other CPU ends", 0);
}

void run(void) {
    check_equal("another CPU starts", start_other_cpus(1, other_cpu), 1);
    for (word n = 0; n < sizeof tests / sizeof *tests; n++) {
        u64 found = 0;
        for (u32 t = 0; t < TURNS; t++) {
            for (u32 i = 0; i < PLACES; i++)
                X = Y = R0 = R1 = R2 = R3 = 0;
            turn(&tests[n]);
            for (u32 i = 0; i < PLACES; i++)
                found += tests[n].came_out(i) != 0;
        }
        if (tests[n].allowed)
            note(tests[n].name, found);
        else
            check_equal(tests[n].name, found, 0);
    }
    static const struct test pair = {"", {pair_first, pair_second}, 0, 0};
    pairs[0] = 0;
    pairs[1] = ~0ull;
    for (u32 t = 0; t < TURNS; t++)
        turn(&pair);
    check_equal("CMPXCHG16B in parts", torn, 0);
}
