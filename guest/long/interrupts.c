// Interrupts and timers: local APIC (timer, self IPI, priorities), shadows, NMI, PIC, PIT, I/O APIC, clock chip
// (SDM vol. 3 chapters 6 and 11; Intel 8259A, 8254, 82093AA, MC146818).
#include "long.h"

static volatile u32 count[256], order[16], taken;
static volatile u64 rip_at[256];
static void eoi(void) { apic_write(APIC_EOI, 0); }
static void on_apic(struct frame *f) {
    count[f->vector]++;
    rip_at[f->vector] = f->rip;
    if (taken < 16)
        order[taken++] = f->vector;
    eoi();
}
static void on_quiet(struct frame *f) {
    count[f->vector]++;
    rip_at[f->vector] = f->rip;
}
// Lets a higher interrupt in, if one is pending.
static void on_nested(struct frame *f) {
    if (taken < 16)
        order[taken++] = f->vector;
    asm volatile("sti; nop; nop; cli" ::: "memory");
    if (taken < 16)
        order[taken++] = f->vector | 0x100;
    eoi();
}
static void sti(void) { asm volatile("sti; nop; nop" ::: "memory"); }
static void cli(void) { asm volatile("cli" ::: "memory"); }
static void self_ipi(u32 vector) { apic_send(0, 0x44000 | vector); }

static void priorities(void) {
    handlers[0x41] = handlers[0x51] = handlers[0x52] = handlers[0x61] = on_apic;
    self_ipi(0x41);
    check_equal("nothing is delivered with IF clear", count[0x41], 0);
    check_equal("it waits in IRR", apic_read(APIC_IRR + 0x20) & 2, 2);
    sti();
    cli();
    check_equal("delivered after sti", count[0x41], 1);
    check_equal("IRR is clear", apic_read(APIC_IRR + 0x20), 0);
    check_equal("ISR is clear after EOI", apic_read(APIC_ISR + 0x20), 0);
    taken = 0;
    self_ipi(0x51);
    self_ipi(0x61);
    self_ipi(0x52);
    sti();
    cli();
    check_equal("highest first", order[0], 0x61);
    check_equal("then by number", order[1], 0x52);
    check_equal("the least last", order[2], 0x51);
    asm volatile("mov %0, %%cr8" ::"r"(5ull));
    check_equal("cr8 is the task priority", apic_read(APIC_TPR), 0x50);
    count[0x51] = count[0x61] = 0;
    self_ipi(0x51);
    self_ipi(0x61);
    sti();
    check_equal("above the task priority", count[0x61], 1);
    check_equal("not above the task priority", count[0x51], 0);
    asm volatile("mov %0, %%cr8; nop" ::"r"(4ull));
    check_equal("after the task priority was lowered", count[0x51], 1);
    cli();
    apic_write(APIC_TPR, 0x30);
    u64 cr8;
    asm volatile("mov %%cr8, %0" : "=r"(cr8));
    check_equal("cr8 reads the task priority", cr8, 3);
    apic_write(APIC_TPR, 0);
    taken = 0;
    handlers[0x41] = on_nested;
    handlers[0x61] = on_apic;
    self_ipi(0x41);
    sti();
    cli();
    check_equal("a handler that lets interrupts in", order[0] << 16 | order[1], 0x41 << 16 | 0x141);
    check_equal("an illegal vector is noted", (self_ipi(5), apic_write(APIC_ESR, 0), apic_read(APIC_ESR)), 0x20);
}

static void raise_inside(struct frame *f) {
    if (taken < 16)
        order[taken++] = f->vector;
    self_ipi(0x42);
    self_ipi(0x71);
    asm volatile("sti; nop; nop; cli" ::: "memory");
    if (taken < 16)
        order[taken++] = f->vector | 0x100;
    eoi();
}

static void nesting(void) {
    taken = 0;
    handlers[0x42] = handlers[0x71] = on_apic;
    handlers[0x45] = raise_inside;
    self_ipi(0x45);
    sti();
    cli();
    check_equal("nested: the handler begins", order[0], 0x45);
    check_equal("nested: a higher class comes in", order[1], 0x71);
    check_equal("nested: the handler ends", order[2], 0x145);
    check_equal("nested: the same class waits for EOI", order[3], 0x42);
}

static void shadows(void) {
    u64 behind;
    handlers[0x43] = on_apic;
    self_ipi(0x43);
    asm volatile("sti\n nop\n 1: cli\n lea 1b(%%rip), %0" : "=r"(behind)::"memory");
    check_equal("sti holds interrupts for one instruction", rip_at[0x43], behind);
    count[0x43] = 0;
    self_ipi(0x43);
    asm volatile("sti; cli; nop; nop" ::: "memory");
    check_equal("sti and cli let none in", count[0x43], 0);
    asm volatile("mov $0x10, %%eax\n pushf\n orl $0x200, (%%rsp)\n mov %%eax, %%ss\n popf\n 1: nop\n cli\n lea 1b(%%rip), %0"
                 : "=r"(behind)::"rax", "memory");
    check_equal("popf opens at once", rip_at[0x43], behind);
    self_ipi(0x43);
    asm volatile("sti\n hlt\n 1: cli\n lea 1b(%%rip), %0" : "=r"(behind)::"memory");
    check_equal("sti and hlt: wakes behind hlt", rip_at[0x43], behind);
}

static volatile u32 nmis, nmi_depth, nmi_deepest;
static void on_nmi(struct frame *f) {
    (void)f;
    nmis++;
    if (++nmi_depth > nmi_deepest)
        nmi_deepest = nmi_depth;
    if (nmis == 1)
        apic_send(0, 0x4400); // another, from inside; to APIC 0, physical
    for (int i = 0; i < 100; i++)
        pause();
    nmi_depth--;
}
static void nmi(void) {
    handlers[NMI] = on_nmi;
    apic_send(0, 0x4400);
    WAIT_FOR(nmis >= 2);
    check_equal("NMI by the local APIC, with IF clear, and a second one", nmis, 2);
    check_equal("NMIs do not nest before iret", nmi_deepest, 1);
}

static void apic_timer(void) {
    handlers[0x44] = on_apic;
    apic_write(APIC_DIVIDE, 0xb);
    apic_write(APIC_LVT_TIMER, 0x44);
    apic_write(APIC_INITIAL, 100000);
    u32 first = apic_read(APIC_CURRENT);
    check("the counter counts down", first <= 100000);
    sti();
    WAIT_FOR(count[0x44]);
    check_equal("one shot", count[0x44], 1);
    check_equal("one shot: the counter stays at zero", apic_read(APIC_CURRENT), 0);
    count[0x44] = 0;
    apic_write(APIC_LVT_TIMER, 0x44 | 1 << 17);
    apic_write(APIC_INITIAL, 100000);
    WAIT_FOR(count[0x44] >= 5);
    apic_write(APIC_INITIAL, 0);
    check("periodic", count[0x44] >= 5);
    count[0x44] = 0;
    apic_write(APIC_LVT_TIMER, 0x44 | 1 << 16);
    apic_write(APIC_INITIAL, 1000);
    WAIT_FOR(!apic_read(APIC_CURRENT));
    for (int i = 0; i < 10000; i++)
        pause();
    check_equal("masked", count[0x44], 0);
    if (cpuid(1, 0).ecx & 1 << 24) {
        apic_write(APIC_LVT_TIMER, 0x44 | 2 << 17);
        u64 deadline = rdtsc() + 1000000;
        wrmsr(0x6e0, deadline);
        WAIT_FOR(count[0x44]);
        check_equal("TSC deadline", count[0x44], 1);
        check("TSC deadline: not early", rdtsc() >= deadline);
        check_equal("TSC deadline: disarmed", rdmsr(0x6e0), 0);
        wrmsr(0x6e0, 1);
        WAIT_FOR(count[0x44] == 2);
        check_equal("TSC deadline in the past", count[0x44], 2);
        cli();
        wrmsr(0x6e0, rdtsc() + 1000000);
        u64 behind;
        asm volatile("sti\n hlt\n 1: cli\n lea 1b(%%rip), %0" : "=r"(behind)::"memory");
        check_equal("TSC deadline wakes from hlt", rip_at[0x44], behind);
        // A deadline is one of the TSC as it reads here, also of one written after the timer was armed.
        count[0x44] = 0;
        sti();
        wrmsr(0x10, 0x1000);
        deadline = rdtsc() + 1000000;
        wrmsr(0x6e0, deadline);
        WAIT_FOR(count[0x44]);
        check_equal("TSC deadline after a write to the TSC", count[0x44], 1);
        check("TSC deadline after a write to the TSC: not early", rdtsc() >= deadline);
        wrmsr(0x6e0, rdtsc() + (1ull << 50));
        wrmsr(0x10, rdtsc() + (1ull << 51));
        WAIT_FOR(count[0x44] == 2);
        check_equal("TSC written beyond an armed deadline", count[0x44], 2);
        wrmsr(0x3b, 0);
    }
    cli();
    apic_write(APIC_LVT_TIMER, 1 << 16);
}

static void ioapic_write(u32 index, u32 v) {
    *(volatile u32 *)0xfec00000ull = index;
    *(volatile u32 *)0xfec00010ull = v;
}
static u32 ioapic_read(u32 index) {
    *(volatile u32 *)0xfec00000ull = index;
    return *(volatile u32 *)0xfec00010ull;
}
static void ioapic_route(u32 pin, u32 low) {
    ioapic_write(0x10 + 2 * pin, 1 << 16);
    ioapic_write(0x11 + 2 * pin, 0);
    ioapic_write(0x10 + 2 * pin, low);
}
static void pic_masks(u8 master, u8 slave) {
    outb(0x21, master);
    outb(0xa1, slave);
}
static void pic_setup(u8 master, u8 slave) {
    outb(0x20, 0x11), outb(0xa0, 0x11);
    outb(0x21, master), outb(0xa1, slave);
    outb(0x21, 4), outb(0xa1, 2);
    outb(0x21, 1), outb(0xa1, 1);
    pic_masks(0xff, 0xff);
}
static void pit_start(u8 mode, u16 ticks) {
    outb(0x43, 0x30 | mode << 1);
    outb(0x40, ticks);
    outb(0x40, ticks >> 8);
}
static u8 clock_chip(u8 reg) {
    outb(0x70, reg);
    return inb(0x71);
}

static void board_timers(void) {
    pic_setup(0x20, 0x28);
    for (u32 pin = 0; pin < 24; pin++)
        ioapic_route(pin, 1 << 16);
    apic_write(APIC_LVT_LINT0, 0x700);
    handlers[0x20] = handlers[0x28] = on_quiet;
    handlers[0x50] = handlers[0x58] = on_apic;
    pic_masks(0xfe, 0xff);
    pit_start(0, 2000);
    sti();
    WAIT_FOR(count[0x20]);
    check_equal("PIT through the PIC, one shot", count[0x20], 1);
    outb(0x20, 0x0b);
    check_equal("in service in the PIC", inb(0x20), 1);
    pit_start(2, 2000);
    for (u64 until = rdtsc() + 20000000; rdtsc() < until;)
        pause();
    check_equal("nothing more before EOI", count[0x20], 1);
    outb(0x20, 0x20);
    WAIT_FOR(count[0x20] >= 2);
    check("after EOI", count[0x20] >= 2);
    pic_masks(0xff, 0xff);
    outb(0x20, 0x20);
    cli();
    apic_write(APIC_LVT_LINT0, 1 << 16);
    // The PIT is on pin 2 of PCs whose tables say so, and on pin 0 elsewhere.
    ioapic_route(2, 0x50);
    ioapic_route(0, 0x50);
    check_equal("a redirection entry reads back", ioapic_read(0x14) & 0xff, 0x50);
    sti();
    WAIT_FOR(count[0x50] >= 3);
    check("PIT through the I/O APIC, periodic", count[0x50] >= 3);
    cli();
    ioapic_route(2, 1 << 16);
    ioapic_route(0, 1 << 16);
    pit_start(0, 1);
    // The clock chip's periodic interrupt, 1024 Hz, edge on pin 8.
    ioapic_route(8, 0x58);
    (void)clock_chip(0xc);
    u8 b = clock_chip(0xb);
    outb(0x70, 0xb);
    outb(0x71, b | 0x40);
    sti();
    WAIT_FOR(count[0x58]);
    check_equal("clock chip's periodic interrupt", count[0x58], 1);
    check_equal("clock chip says why", clock_chip(0xc) & 0xc0, 0xc0);
    WAIT_FOR(count[0x58] >= 2);
    check("another after register C was read", count[0x58] >= 2);
    outb(0x70, 0xb);
    outb(0x71, b);
    cli();
    ioapic_route(8, 1 << 16);
    (void)clock_chip(0xc);
    u8 second = clock_chip(0);
    check("seconds are binary-coded", (second & 15) < 10 && second < 0x60);
}

static void x2apic(void) {
    if (!(cpuid(1, 0).ecx & 1 << 21))
        return;
    wrmsr(0x1b, rdmsr(0x1b) | 1 << 10);
    check_equal("x2APIC identity", rdmsr(0x802), cpuid(0xb, 0).edx);
    check_equal("x2APIC version", rdmsr(0x803) & 0xff, 0x14);
    handlers[0x46] = handlers[0x47] = handlers[0x48] = on_quiet;
    sti();
    wrmsr(0x83f, 0x46);
    WAIT_FOR(count[0x46]);
    check_equal("x2APIC self IPI", count[0x46], 1);
    wrmsr(0x80b, 0);
    wrmsr(0x830, rdmsr(0x802) << 32 | 0x47);
    WAIT_FOR(count[0x47]);
    check_equal("x2APIC interrupt command", count[0x47], 1);
    wrmsr(0x80b, 0);
    wrmsr(0x83e, 0xb);
    wrmsr(0x832, 0x48);
    wrmsr(0x838, 10000);
    WAIT_FOR(count[0x48]);
    check_equal("x2APIC timer", count[0x48], 1);
    wrmsr(0x80b, 0);
    cli();
    PROBE7("mov $0x80b, %%ecx\n mov $1, %%eax\n xor %%edx, %%edx\n 7: wrmsr", "i"(0));
    expect("x2APIC: EOI takes zero only", GP, 0);
    PROBE7("mov $0x83f, %%ecx\n 7: rdmsr", "i"(0));
    expect("x2APIC: self IPI is write-only", GP, 0);
    PROBE7("mov $0x1b, %%ecx\n rdmsr\n and $~0x400, %%eax\n 7: wrmsr", "i"(0));
    expect("x2APIC: not back to xAPIC directly", GP, 0);
}

void run(void) {
    apic_enable();
    pic_setup(0x20, 0x28);
    priorities();
    nesting();
    shadows();
    nmi();
    apic_timer();
    board_timers();
    x2apic();
}
