// Traps, probes, descriptor tables, local APIC and the start of other CPUs, for programs in long mode.
#include "long.h"

volatile struct trap trap;
volatile u64 probe_rip, resume_rip, resume_rsp, resume_rbp;
void (*handlers[256])(struct frame *);
struct gate idt[256] ALIGNED(16);
struct tss tss ALIGNED(16);
volatile u32 ap_count;
void (*volatile ap_main)(u32);
extern u8 stubs[], ap_start[], ap_start_end[];
static u8 trap_stack[0x4000] ALIGNED(16), user_stack[0x4000] ALIGNED(16);

void load_idt(const void *base, u16 limit) {
    struct {
        u16 limit;
        u64 base;
    } PACKED pointer = {limit, (word)base};
    asm volatile("lidt %0" ::"m"(pointer));
}

void set_gate(int vector, word target, u8 access, u8 ist) {
    idt[vector] = (struct gate){target, 8, ist, access, target >> 16, target >> 32, 0};
}

void trap_c(struct frame *f) {
    u64 cr2 = read_cr2();
    if (handlers[f->vector]) {
        handlers[f->vector](f);
        return;
    }
    trap.vector = f->vector;
    trap.error = f->error;
    trap.cr2 = cr2;
    trap.dr6 = read_dr6();
    memcpy((void *)&trap.frame, f, sizeof *f);
    if (!resume_rip) {
        put("FAIL unexpected exception ");
        put_hex(f->vector);
        put(" error ");
        put_hex(f->error);
        put(" at ");
        put_hex(f->rip);
        put(" cr2 ");
        put_hex(cr2);
        put("\nDONE by an exception\n");
        power_off();
    }
    f->rip = resume_rip;
    f->rsp = resume_rsp;
    f->rbp = resume_rbp;
    f->cs = 8;
    f->ss = 0x10;
    f->flags = 2;
    resume_rip = 0;
}

static void describe(const char *name, const char *what, u64 got, u64 want) {
    char text[120];
    u32 n = 0;
    while (*name && n < 80)
        text[n++] = *name++;
    text[n++] = ',';
    text[n++] = ' ';
    while (*what && n < 118)
        text[n++] = *what++;
    text[n] = 0;
    check_equal(text, got, want);
}

static void expect_at(const char *name, u64 vector, u64 error, u64 rip) {
    if (trap.vector == vector && trap.error == error && (vector == NONE || trap.frame.rip == rip)) {
        check(name, 1);
    } else if (trap.vector != vector) {
        describe(name, "vector", trap.vector, vector);
    } else if (trap.error != error) {
        describe(name, "error code", trap.error, error);
    } else {
        describe(name, "rip", trap.frame.rip, rip);
    }
}

void expect(const char *name, u64 vector, u64 error) { expect_at(name, vector, error, probe_rip); }
void expect_after(const char *name, u64 vector, u64 error, word len) { expect_at(name, vector, error, probe_rip + len); }
void expect_none(const char *name) { expect_at(name, NONE, 0, 0); }

void expect_page_fault(const char *name, u64 error, u64 address) {
    if (trap.vector == PF && trap.error == error && trap.cr2 != address)
        describe(name, "cr2", trap.cr2, address);
    else
        expect(name, PF, error);
}

void run_user_flags(void (*f)(word), word argument, word flags) {
    trap.vector = NONE;
    enter_user((word)f | USER, (word)(user_stack + sizeof user_stack - 8) | USER, flags, argument);
    resume_rip = 0;
}

void run_user(void (*f)(word), word argument) { run_user_flags(f, argument, 2); }

void apic_enable(void) {
    apic_write(APIC_SVR, 0x1ff);
    apic_write(APIC_TPR, 0);
}

void apic_send(u32 target, u32 command) {
    apic_write(APIC_ICR_HIGH, target << 24);
    apic_write(APIC_ICR, command);
    WAIT_FOR(!(apic_read(APIC_ICR) & 1 << 12));
}

static void delay(u64 ticks) {
    for (u64 until = rdtsc() + ticks; rdtsc() < until;)
        pause();
}

u32 start_other_cpus(u32 wanted, void (*entry)(u32)) {
    memcpy((void *)0x8000, ap_start, ap_start_end - ap_start);
    ap_main = entry;
    apic_enable();
    apic_send(0, 0xc4500); // INIT to all but self
    delay(20000000);
    apic_send(0, 0xc4608); // SIPI, page 8
    WAIT_FOR(ap_count >= wanted);
    return ap_count;
}

void ap_start_c(u32 number) {
    load_idt(idt, sizeof idt - 1);
    apic_enable();
    ap_main(number);
}

// Data that must be reachable from user mode is at the same offset from USER; nothing else is to be set up for it.
void start_c(void) {
    for (int i = 0; i < 256; i++)
        set_gate(i, (word)stubs + 16 * i, 0x8e, 0);
    idt[0x80].access = idt[BP].access = idt[OF].access = 0xee;
    load_idt(idt, sizeof idt - 1);
    tss.rsp[0] = (word)(trap_stack + sizeof trap_stack);
    tss.io_map = 104;
    memset(tss.io_bits, 0xff, sizeof tss.io_bits);
    u64 base = (word)&tss, limit = sizeof tss - 1;
    gdt[6] = (limit & 0xffff) | (base & 0xffffff) << 16 | 0x89ull << 40 | (base >> 24 & 0xff) << 56;
    gdt[7] = base >> 32;
    asm volatile("ltr %w0" ::"r"(0x30));
    outb(0x3fb, 3);
    outb(0x3f9, 0);
    run();
    done();
}
