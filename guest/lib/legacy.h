// 32-bit protected mode: traps and probes as in long.h.
#pragma once
#include "guest.h"

struct frame {
    u32 es, ds, edi, esi, ebp, esp0, ebx, edx, ecx, eax, vector, error, eip, cs, flags, esp, ss;
    u32 vm_es, vm_ds, vm_fs, vm_gs;
};
struct trap {
    u32 vector, error, cr2;
    struct frame frame; // esp and beyond only if the privilege changed
};
extern volatile struct trap trap;
extern volatile u32 probe_rip, resume_rip, resume_rsp, resume_rbp;
extern void (*handlers[256])(struct frame *);
extern u64 gdt[27], idt[256];
struct tss {
    u32 link, esp0, ss0, esp1, ss1, esp2, ss2, cr3, eip, flags, eax, ecx, edx, ebx, esp, ebp, esi, edi;
    u32 es, cs, ss, ds, fs, gs, ldt;
    u16 trap, io_map;
    u8 redirection[32], io_bits[8193];
} PACKED;
extern struct tss tss;
u64 descriptor(u32 base, u32 limit, u32 access, u32 flags);
void set_gate(int vector, u16 selector, u32 target, u8 access);

#define PROBE7(text, ...)                                                                                            \
    do {                                                                                                             \
        trap.vector = NONE;                                                                                          \
        trap.error = 0;                                                                                              \
        asm volatile("movl $7f, probe_rip\n movl $8f, resume_rip\n mov %%esp, resume_rsp\n mov %%ebp, resume_rbp\n"  \
                     text "\n8: movl $0, resume_rip" ::__VA_ARGS__                                                   \
                     : "eax", "ecx", "edx", "memory", "cc");                                                         \
    } while (0)
#define PROBE(text, ...) PROBE7("7: " text, __VA_ARGS__)
void expect(const char *name, u32 vector, u32 error);
void expect_after(const char *name, u32 vector, u32 error, u32 len);
void expect_none(const char *name);
void enter(u32 ip, u32 cs, u32 flags, u32 sp, u32 ss);
