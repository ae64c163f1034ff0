// Traps, probes and descriptor tables of 32-bit protected mode.
#include "legacy.h"

volatile struct trap trap;
volatile u32 probe_rip, resume_rip, resume_rsp, resume_rbp;
void (*handlers[256])(struct frame *);
u64 idt[256] ALIGNED(16);
struct tss tss ALIGNED(16);
extern u8 stubs[];
static u8 trap_stack[0x4000] ALIGNED(16);

u64 descriptor(u32 base, u32 limit, u32 access, u32 flags) {
    return (limit & 0xffff) | (u64)(base & 0xffffff) << 16 | (u64)access << 40 | (u64)(limit >> 16 & 15) << 48 |
           (u64)flags << 52 | (u64)(base >> 24) << 56;
}

void set_gate(int vector, u16 selector, u32 target, u8 access) {
    idt[vector] = (target & 0xffff) | (u64)selector << 16 | (u64)access << 40 | (u64)(target >> 16) << 48;
}

void trap_c(struct frame *f) {
    if (handlers[f->vector]) {
        handlers[f->vector](f);
        return;
    }
    trap.vector = f->vector;
    trap.error = f->error;
    trap.cr2 = read_cr2();
    int outer = f->cs & 3 || f->flags & FLAG_VM;
    memcpy((void *)&trap.frame, f, outer ? sizeof *f : sizeof *f - 24);
    if (!resume_rip) {
        put("FAIL unexpected exception ");
        put_hex(f->vector);
        put(" error ");
        put_hex(f->error);
        put(" at ");
        put_hex(f->eip);
        put("\nDONE by an exception\n");
        power_off();
    }
    u32 ip = resume_rip;
    resume_rip = 0;
    // Not by IRET, which could come back to another privilege level; the probe's registers are as they were.
    asm volatile("mov %1, %%ebp\n mov %2, %%esp\n push $2\n popf\n push %3\n"
                 "mov 8(%0), %%edi\n mov 12(%0), %%esi\n mov 24(%0), %%ebx\n ret" ::"a"(f),
                 "c"(resume_rbp), "d"(resume_rsp), "D"(ip));
    __builtin_unreachable();
}

static void expect_at(const char *name, u32 vector, u32 error, u32 ip) {
    if (trap.vector != vector)
        check_equal(name, trap.vector, vector);
    else if (trap.error != error)
        check_equal(name, trap.error, error);
    else
        check_equal(name, vector == NONE ? 0 : trap.frame.eip, vector == NONE ? 0 : ip);
}
void expect(const char *name, u32 vector, u32 error) { expect_at(name, vector, error, probe_rip); }
void expect_after(const char *name, u32 vector, u32 error, u32 len) { expect_at(name, vector, error, probe_rip + len); }
void expect_none(const char *name) { expect_at(name, NONE, 0, 0); }

void start_c(void) {
    for (int i = 0; i < 256; i++)
        set_gate(i, 8, (u32)stubs + 16 * i, 0x8e);
    set_gate(0x80, 8, (u32)stubs + 16 * 0x80, 0xee);
    set_gate(OF, 8, (u32)stubs + 16 * OF, 0xee);
    struct {
        u16 limit;
        u32 base;
    } PACKED pointer = {sizeof idt - 1, (u32)idt};
    asm volatile("lidt %0" ::"m"(pointer));
    tss.esp0 = (u32)(trap_stack + sizeof trap_stack);
    tss.ss0 = 0x10;
    tss.io_map = 104 + 32;
    memset(tss.io_bits, 0xff, sizeof tss.io_bits);
    gdt[5] = descriptor((u32)&tss, sizeof tss - 1, 0x89, 0);
    asm volatile("ltr %w0" ::"r"(0x28));
    outb(0x3fb, 3);
    outb(0x3f9, 0);
    run();
    done();
}
