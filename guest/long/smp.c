// Four CPUs: start, IPIs, atomics, TLB shootdown, memory ordering, code modified by another CPU.
#include "long.h"

enum { CPUS = 4, ROUNDS = 2000 };
static volatile u32 phase, arrived, received[16][256];
static volatile u64 counter, spin_counter, plain;
static volatile u32 lock;
static volatile u32 go;
static u8 numbers[256]; // number of the CPU with this APIC id
static u8 apic_of[16];

static u32 self(void) { return numbers[apic_read(APIC_ID) >> 24]; }
static void on_ipi(struct frame *f) {
    __atomic_fetch_add(&received[self()][f->vector], 1, __ATOMIC_SEQ_CST);
    apic_write(APIC_EOI, 0);
}

// All CPUs do `work` together; returns on the first when all have finished.
static void (*volatile job)(u32 number);
static void together(void (*work)(u32)) {
    job = work;
    arrived = 0;
    __atomic_fetch_add(&phase, 1, __ATOMIC_SEQ_CST);
    work(0);
    WAIT_FOR(arrived == CPUS - 1);
    if (arrived != CPUS - 1)
        check("all CPUs finish their work", 0);
}
static void other_cpu(u32 number) {
    u32 seen = 0;
    numbers[apic_read(APIC_ID) >> 24] = number;
    apic_of[number] = apic_read(APIC_ID) >> 24;
    asm volatile("sti");
    for (;;) {
        while (phase == seen)
            pause();
        seen = phase;
        job(number);
        __atomic_fetch_add(&arrived, 1, __ATOMIC_SEQ_CST);
    }
}

static void nothing(u32 number) { (void)number; }
static void increments(u32 number) {
    (void)number;
    for (int i = 0; i < ROUNDS; i++) {
        asm volatile("lock incq %0" : "+m"(counter));
        while (__atomic_exchange_n(&lock, 1, __ATOMIC_ACQUIRE))
            pause();
        plain = plain + 1;
        __atomic_store_n(&lock, 0, __ATOMIC_RELEASE);
        u64 old = spin_counter, want;
        do {
            want = old;
            old = __sync_val_compare_and_swap(&spin_counter, want, want + 1);
        } while (old != want);
    }
}

static void ipis(void) {
    handlers[0x60] = handlers[0x61] = handlers[0x62] = handlers[0x63] = handlers[0x64] = on_ipi;
    asm volatile("sti");
    apic_send(apic_of[2], 0x4060);
    WAIT_FOR(received[2][0x60]);
    check_equal("IPI to one CPU", received[2][0x60], 1);
    check_equal("IPI to no other", received[0][0x60] + received[1][0x60] + received[3][0x60], 0);
    apic_send(0, 0xc4061);
    WAIT_FOR(received[1][0x61] && received[2][0x61] && received[3][0x61]);
    check_equal("IPI to all but self", received[1][0x61] + received[2][0x61] + received[3][0x61], 3);
    check_equal("not to self", received[0][0x61], 0);
    apic_send(0, 0x84062);
    WAIT_FOR(received[0][0x62] && received[1][0x62] && received[2][0x62] && received[3][0x62]);
    check_equal("IPI to all", received[0][0x62] + received[1][0x62] + received[2][0x62] + received[3][0x62], 4);
    apic_send(0, 0x44063);
    WAIT_FOR(received[0][0x63]);
    check_equal("IPI to self", received[0][0x63], 1);
    check_equal("only to self", received[1][0x63] + received[2][0x63] + received[3][0x63], 0);
    apic_send(0xff, 0x4064);
    WAIT_FOR(received[0][0x64] && received[1][0x64] && received[2][0x64] && received[3][0x64]);
    check_equal("IPI to physical destination 255", received[0][0x64] + received[1][0x64] + received[2][0x64] + received[3][0x64], 4);
}

// TLB shootdown: the others keep reading a page while the first changes what it leads to, and flush when told.
#define WINDOW 0x8000000000ull
static u64 table3[512] ALIGNED(4096), table2[512] ALIGNED(4096), table1[512] ALIGNED(4096);
static u64 frames[2][512] ALIGNED(4096);
static volatile u32 flushed, generation, wrong, stop;
static void on_flush(struct frame *f) {
    (void)f;
    invlpg((void *)WINDOW);
    __atomic_fetch_add(&flushed, 1, __ATOMIC_SEQ_CST);
    apic_write(APIC_EOI, 0);
}
static void shootdown(u32 number) {
    if (number) {
        while (!stop) {
            u32 before = __atomic_load_n(&generation, __ATOMIC_SEQ_CST);
            u64 value = *(volatile u64 *)WINDOW;
            u32 after = __atomic_load_n(&generation, __ATOMIC_SEQ_CST);
            // An even generation is one in which all have flushed.
            if (before == after && !(before & 1) && value != (before / 2 & 1))
                wrong = wrong + 1;
            pause(); // so that the first gets its turn where there are fewer processors than CPUs
        }
        return;
    }
    for (u32 i = 1; i <= 200; i++) {
        generation = 2 * i - 1;
        flushed = 0;
        table1[0] = (word)frames[i & 1] | 3;
        invlpg((void *)WINDOW);
        apic_send(0, 0xc4070);
        WAIT_FOR(flushed == CPUS - 1);
        __atomic_store_n(&generation, 2 * i, __ATOMIC_SEQ_CST);
        for (int k = 0; k < 50; k++)
            pause();
    }
    stop = 1;
}

// Message passing and store buffering. x and y are on lines of their own.
static volatile u32 x ALIGNED(64), y ALIGNED(64), pad ALIGNED(64);
static volatile u32 barrier_count, mp_bad, sb_both_zero, sb_fenced_bad;
static volatile u32 result[2];
static void barrier(u32 *sense) {
    *sense += 2;
    __atomic_fetch_add(&barrier_count, 1, __ATOMIC_SEQ_CST);
    WAIT_FOR(barrier_count >= *sense);
}
static void litmus(u32 number) {
    if (number > 1)
        return;
    u32 sense = 0;
    for (int i = 0; i < 1000; i++) {
        // Message passing: whoever sees y sees x.
        barrier(&sense);
        if (number == 0) {
            x = i + 1;
            y = i + 1;
        } else {
            u32 b = y, a = x;
            if (b == (u32)i + 1 && a != (u32)i + 1)
                mp_bad = mp_bad + 1;
        }
        barrier(&sense);
        if (!number)
            x = y = 0;
        barrier(&sense);
        // Store buffering without fences may read two zeros; with them it must not.
        if (number == 0) {
            x = 1;
            result[0] = y;
        } else {
            y = 1;
            result[1] = x;
        }
        barrier(&sense);
        if (!number) {
            sb_both_zero += !result[0] && !result[1];
            x = y = 0;
        }
        barrier(&sense);
        if (number == 0) {
            x = 1;
            asm volatile("mfence" ::: "memory");
            result[0] = y;
        } else {
            y = 1;
            asm volatile("lock addl $0, (%%rsp)" ::: "memory");
            result[1] = x;
        }
        barrier(&sense);
        if (!number) {
            sb_fenced_bad += !result[0] && !result[1];
            x = y = i + 1;
        }
    }
}

// Cross-modifying code: the first CPU patches a function, tells the others by an IPI whose IRET serialises.
static u8 code[64] ALIGNED(64);
static volatile u32 synced, stale;
static void on_sync(struct frame *f) {
    (void)f;
    __atomic_fetch_add(&synced, 1, __ATOMIC_SEQ_CST);
    apic_write(APIC_EOI, 0);
}
static void cross_modify(u32 number) {
    u32 (*function)(void) = (void *)code;
    if (number) {
        while (!stop) {
            u32 before = __atomic_load_n(&generation, __ATOMIC_SEQ_CST), got = function();
            u32 after = __atomic_load_n(&generation, __ATOMIC_SEQ_CST);
            if (before == after && !(before & 1) && got != before)
                stale = stale + 1;
            pause();
        }
        return;
    }
    for (u32 i = 1; i <= 200; i++) {
        generation = 2 * i - 1;
        synced = 0;
        *(volatile u32 *)(code + 4) = 2 * i;
        apic_send(0, 0xc4071);
        WAIT_FOR(synced == CPUS - 1);
        __atomic_store_n(&generation, 2 * i, __ATOMIC_SEQ_CST);
        for (int k = 0; k < 50; k++)
            pause();
    }
    stop = 1;
}

// One IPI for each sleep, and never a second: a wake-up that is lost leaves the CPU asleep. Interrupts are off
// from before a CPU says that it is about to sleep until HLT, which the shadow of STI covers, so that the IPI
// always finds it in HLT or on the way there.
enum { SLEEPS = 500 };
static volatile u32 asleep[CPUS], woken[CPUS], taken[CPUS];
static void on_wake(struct frame *f) {
    (void)f;
    taken[self()]++;
    apic_write(APIC_EOI, 0);
}
static void sleep(u32 number) {
    for (u32 i = 1; i <= SLEEPS; i++) {
        if (number) {
            asm volatile("cli");
            asleep[number] = i;
            asm volatile("sti; hlt" ::: "memory");
            woken[number] = i;
            continue;
        }
        for (u32 k = 1; k < CPUS; k++) {
            WAIT_FOR(asleep[k] == i);
            // Sometimes long after it has halted, sometimes just then.
            for (u32 spin = 0; spin < i % 64; spin++)
                pause();
            apic_send(apic_of[k], 0x4072);
        }
        for (u32 k = 1; k < CPUS; k++) {
            WAIT_FOR(woken[k] == i);
            if (woken[k] != i)
                return;
        }
    }
}

void run(void) {
    check_equal("three more CPUs start", start_other_cpus(CPUS - 1, other_cpu), CPUS - 1);
    apic_of[0] = apic_read(APIC_ID) >> 24;
    together(nothing);
    ipis();
    together(increments);
    check_equal("lock inc on four CPUs", counter, CPUS * ROUNDS);
    check_equal("compare and swap on four CPUs", spin_counter, CPUS * ROUNDS);
    check_equal("additions under a spin lock", plain, CPUS * ROUNDS);
    frames[1][0] = 1;
    pml4[1] = (word)table3 | 3;
    table3[0] = (word)table2 | 3;
    table2[0] = (word)table1 | 3;
    table1[0] = (word)frames[0] | 3;
    handlers[0x70] = on_flush;
    together(shootdown);
    check_equal("stale translations after a shootdown", wrong, 0);
    together(litmus);
    check_equal("message passing out of order", mp_bad, 0);
    check_equal("store buffering with fences: both zero", sb_fenced_bad, 0);
    note("store buffering without fences: both zero (allowed)", sb_both_zero);
    static const u8 body[] = {0x0f, 0x1f, 0, 0xb8, 0, 0, 0, 0, 0xc3};
    memcpy(code, body, sizeof body);
    generation = stop = 0;
    handlers[0x71] = on_sync;
    together(cross_modify);
    check_equal("stale code after another CPU changed it", stale, 0);
    handlers[0x72] = on_wake;
    together(sleep);
    for (u32 k = 1; k < CPUS; k++) {
        check_equal("a halted CPU wakes by an IPI", woken[k], SLEEPS);
        check_equal("once for each", taken[k], SLEEPS);
    }
}
