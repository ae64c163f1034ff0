// Long mode: traps, probes, user mode, local APIC, other CPUs. See long.S for the memory layout.
#pragma once
#include "guest.h"

#define USER 0x4000000000ull // the first GiB again, for user mode
#define USER_PTR(p) ((void *)((word)(p) + USER))

struct frame {
    u64 r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax;
    u64 vector, error, rip, cs, flags, rsp, ss;
};

// The exception the last probe met.
struct trap {
    u64 vector, error, cr2, dr6;
    struct frame frame;
};
extern volatile struct trap trap;
extern volatile u64 probe_rip, resume_rip, resume_rsp, resume_rbp;
extern u32 user_cs;

// Handlers run instead of the probe's recording; they may change the frame.
extern void (*handlers[256])(struct frame *);

struct gate {
    u16 low, selector;
    u8 ist, access;
    u16 middle;
    u32 high, zero;
} PACKED;
extern struct gate idt[256];
extern u64 gdt[20], pml4[512], pdpt[512], pd_kernel[512];
struct tss {
    u32 zero;
    u64 rsp[3], zero2, ist[7];
    u64 zero3;
    u16 zero4, io_map;
    u8 io_bits[8193];
} PACKED;
extern struct tss tss;
void load_idt(const void *base, u16 limit);
void set_gate(int vector, word target, u8 access, u8 ist);

// Runs one instruction, or a few; if it faults, records the exception in `trap` and goes on behind it. rax, rcx
// and rdx are free for the text; its label 7 is where the exception is expected.
#define PROBE7(text, ...)                                                                                            \
    do {                                                                                                             \
        trap.vector = NONE;                                                                                          \
        trap.error = 0;                                                                                              \
        asm volatile("lea 7f(%%rip), %%r11\n mov %%r11, probe_rip(%%rip)\n"                                          \
                     "lea 8f(%%rip), %%r11\n mov %%r11, resume_rip(%%rip)\n mov %%rsp, resume_rsp(%%rip)\n mov %%rbp, resume_rbp(%%rip)\n" text     \
                     "\n8: movq $0, resume_rip(%%rip)" ::__VA_ARGS__                                                 \
                     : "rax", "rcx", "rdx", "r11", "memory", "cc");                                                  \
    } while (0)
#define PROBE(text, ...) PROBE7("7: " text, __VA_ARGS__)

// After a probe: that it met this exception with this error code, at the instruction (a fault).
void expect(const char *name, u64 vector, u64 error);
// The same for a trap, whose RIP is behind the instruction of `len` bytes.
void expect_after(const char *name, u64 vector, u64 error, word len);
// That it met none.
void expect_none(const char *name);
// Also that CR2 is `address`.
void expect_page_fault(const char *name, u64 error, u64 address);

void enter_user(word rip, word rsp, word flags, word argument);
// Runs the supervisor-mapped function `f` at CPL 3 until its first exception; `int $0x80` is the way to end well.
void run_user(void (*f)(word), word argument);
void run_user_flags(void (*f)(word), word argument, word flags);
#define END_USER asm volatile("int $0x80")

// Local APIC through memory.
enum { APIC_ID = 0x20, APIC_TPR = 0x80, APIC_PPR = 0xa0, APIC_EOI = 0xb0, APIC_SVR = 0xf0, APIC_ISR = 0x100, APIC_IRR = 0x200,
       APIC_ESR = 0x280, APIC_ICR = 0x300, APIC_ICR_HIGH = 0x310, APIC_LVT_TIMER = 0x320, APIC_LVT_LINT0 = 0x350,
       APIC_INITIAL = 0x380, APIC_CURRENT = 0x390, APIC_DIVIDE = 0x3e0 };
static inline u32 apic_read(u32 reg) { return *(volatile u32 *)(0xfee00000 + (word)reg); }
static inline void apic_write(u32 reg, u32 v) { *(volatile u32 *)(0xfee00000 + (word)reg) = v; }
void apic_enable(void);
void apic_send(u32 target, u32 command);
// Busy until `condition`, or for so long that on no host, however busy, it can still come true.
#define WAIT_FOR(condition)                                                                                          \
    for (u64 until = rdtsc() + 100000000000ull; !(condition) && rdtsc() < until;)                                     \
    pause()

// Other CPUs: each runs `ap_main(number)` on its own stack, with the same IDT. Returns how many have started.
extern volatile u32 ap_count;
extern void (*volatile ap_main)(u32 number);
u32 start_other_cpus(u32 wanted, void (*entry)(u32));
