// Exceptions in 64-bit mode: vector, error code, saved RIP, and what a faulting instruction leaves unchanged
// (SDM vol. 3 chapter 6). Page faults that depend on paging bits are in paging.c.
#include "long.h"

static u8 user_area[4096] ALIGNED(4096);
static volatile u64 word0;

static void divide(void) {
    PROBE7("xor %%ecx, %%ecx\n mov $5, %%eax\n xor %%edx, %%edx\n 7: div %%ecx", "i"(0));
    expect("div by zero", DE, 0);
    check_equal("div by zero leaves rax", trap.frame.rax, 5);
    PROBE7("mov $1, %%ecx\n xor %%eax, %%eax\n mov $1, %%edx\n 7: div %%ecx", "i"(0));
    expect("div overflow", DE, 0);
    PROBE7("mov $-1, %%rcx\n mov $1, %%eax\n shl $63, %%rax\n cqo\n 7: idiv %%rcx", "i"(0));
    expect("idiv of the least by -1", DE, 0);
    PROBE7("mov $0x100, %%eax\n mov $1, %%ecx\n 7: div %%cl", "i"(0));
    expect("8-bit div overflow", DE, 0);
}

static void simple(void) {
    PROBE("ud2", "i"(0));
    expect("ud2", UD, 0);
    PROBE(".byte 0x06", "i"(0));
    expect("push es in 64-bit mode", UD, 0);
    PROBE(".byte 0xf0, 0x90", "i"(0));
    expect("lock nop", UD, 0);
    PROBE(".byte 0xf0, 0x01, 0xc0", "i"(0));
    expect("lock add to a register", UD, 0);
    PROBE(".byte 0x62, 0xf1", "i"(0));
    check_equal("evex without avx-512 is #UD", trap.vector, UD);
    PROBE("int3", "i"(0));
    expect_after("int3", BP, 0, 1);
    PROBE(".byte 0xcd, 3", "i"(0));
    expect_after("int 3", BP, 0, 2);
    PROBE("int $0x80", "i"(0));
    expect_after("int 0x80", 0x80, 0, 2);
    PROBE(".byte 0xf1", "i"(0));
    expect_after("int1", DB, 0, 1);
    PROBE(".byte 0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x90", "i"(0));
    expect("an instruction of 16 bytes", GP, 0);
    PROBE(".byte 0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x90", "i"(0));
    expect_none("an instruction of 15 bytes");
}

static void general_protection(void) {
    u64 bad = 0x0000800000000000;
    PROBE("mov (%0), %%rax", "b"(bad));
    expect("load from a non-canonical address", GP, 0);
    PROBE("mov %%rax, -8(%0)", "b"(bad + 8));
    expect("store to a non-canonical address", GP, 0);
    PROBE7("mov %0, %%rsp\n 7: push %%rax", "b"(bad + 8));
    expect("push to a non-canonical stack", SS, 0);
    PROBE7("mov %0, %%rbp\n 7: mov (%%rbp), %%rcx", "b"(bad));
    expect("rbp-based load from a non-canonical address", SS, 0);
    PROBE("jmp *%0", "b"(bad));
    expect("jump to a non-canonical address", GP, 0);
    PROBE("mov %0, %%ds", "b"(0x1000));
    expect("selector beyond the table", GP, 0x1000);
    PROBE("mov %0, %%ds", "b"(0x14));
    check_equal("selector in an empty local table, vector", trap.vector, GP);
    check_equal("selector in an empty local table, error", trap.error, 0x14);
    PROBE("mov %0, %%ss", "b"(0));
    expect_none("null ss at CPL 0 in 64-bit mode");
    asm volatile("mov %0, %%ss" ::"r"(0x10));
    PROBE("mov %0, %%ss", "b"(3));
    expect("null ss with RPL 3 at CPL 0", GP, 0);
    PROBE("mov %0, %%ss", "b"(8));
    expect("code segment in ss", GP, 8);
    PROBE("mov %0, %%ds", "b"(0x48));
    expect("absent segment in ds", NP, 0x48);
    PROBE("mov %0, %%ss", "b"(0x48));
    expect("absent segment in ss", SS, 0x48);
    PROBE("mov %0, %%ds", "b"(0x30));
    expect("TSS in ds", GP, 0x30);
    PROBE("ltr %w0", "b"(0x30));
    expect("ltr of a busy TSS", GP, 0x30);
    PROBE("lldt %w0", "b"(0x10));
    expect("lldt of a data segment", GP, 0x10);
    PROBE("int $0x90", "i"(0));
    expect_after("int through a gate", 0x90, 0, 2);
    u8 old = idt[0x90].access;
    idt[0x90].access = 0x0e;
    PROBE("int $0x90", "i"(0));
    expect("int through an absent gate", NP, 0x90 << 3 | 2);
    idt[0x90].access = 0x80;
    PROBE("int $0x90", "i"(0));
    expect("int through no gate", GP, 0x90 << 3 | 2);
    idt[0x90].access = old;
    idt[0x90].selector = 0x10;
    PROBE("int $0x90", "i"(0));
    expect("int to a data segment", GP, 0x10);
    idt[0x90].selector = 0x58;
    PROBE("int $0x90", "i"(0));
    expect("int to an absent segment", NP, 0x58);
    idt[0x90].selector = 0;
    PROBE("int $0x90", "i"(0));
    expect("int to the null segment", GP, 0);
    idt[0x90].selector = 8;
    load_idt(idt, 0x90 * 16 - 1);
    PROBE("int $0x90", "i"(0));
    expect("int beyond the table", GP, 0x90 << 3 | 2);
    load_idt(idt, sizeof idt - 1);
    PROBE7("pushq $0x48\n lea 8f(%%rip), %%rax\n push %%rax\n 7: lretq", "i"(0));
    expect("far return to an absent data segment", GP, 0x48);
    PROBE7("pushq $0x58\n lea 8f(%%rip), %%rax\n push %%rax\n 7: lretq", "i"(0));
    expect("far return to an absent code segment", NP, 0x58);
}

static void control_registers(void) {
    u64 cr0 = read_cr0(), cr4 = read_cr4();
    PROBE("mov %0, %%cr0", "b"(cr0 & ~1ull));
    expect("cr0: PG without PE", GP, 0);
    PROBE("mov %0, %%cr0", "b"((cr0 | 1 << 29) & ~(1ull << 30)));
    expect("cr0: NW without CD", GP, 0);
    PROBE("mov %0, %%cr0", "b"(cr0 | 1ull << 40));
    expect("cr0: upper half", GP, 0);
    PROBE("mov %0, %%cr4", "b"(cr4 & ~(u64)CR4_PAE));
    expect("cr4: no PAE in long mode", GP, 0);
    PROBE("mov %0, %%cr4", "b"(cr4 | 1 << 19 | 1 << 31));
    expect("cr4: reserved bit", GP, 0);
    PROBE("mov %0, %%cr3", "b"(read_cr3() | 1ull << 52));
    expect("cr3: beyond physical addresses", GP, 0);
    PROBE("mov %0, %%cr8", "b"(16ull));
    expect("cr8: reserved bit", GP, 0);
    PROBE(".byte 0x0f, 0x22, 0xcb", "i"(0));
    expect("cr1 is not there", UD, 0);
    PROBE("mov %0, %%dr7", "b"(1ull << 32));
    expect("dr7: upper half", GP, 0);
    PROBE("mov %0, %%dr6", "b"(1ull << 32));
    expect("dr6: upper half", GP, 0);
    PROBE7("mov $0x12345, %%ecx\n 7: rdmsr", "i"(0));
    expect("rdmsr of a register that is not there", GP, 0);
}

static void ist_setup(void) {
    static u8 stack[0x4000] ALIGNED(16);
    tss.ist[0] = (word)(stack + sizeof stack);
    idt[PF].ist = idt[SS].ist = idt[GP].ist = idt[DF].ist = 1;
}

static void restart(void) {
    u64 hole = 0x8000000000ull;
    PROBE7("mov %0, %%rsp\n 7: push %%rax", "b"(hole + 64));
    check_equal("faulting push leaves rsp", trap.frame.rsp, hole + 64);
    PROBE7("mov %0, %%rsp\n 7: call 8f", "b"(hole + 64));
    expect_page_fault("call with an unmapped stack", 2, hole + 56);
    check_equal("faulting call leaves rsp", trap.frame.rsp, hole + 64);
    PROBE7("mov %0, %%rsp\n 7: pop %%rax", "b"(hole + 64));
    expect_page_fault("pop from an unmapped stack", 0, hole + 64);
    check_equal("faulting pop leaves rsp", trap.frame.rsp, hole + 64);
    PROBE("pop (%0)", "b"(hole));
    expect_page_fault("pop to unmapped memory", 2, hole);
    check_equal("pop to unmapped memory leaves rsp", trap.frame.rsp, resume_rsp);
    PROBE7("mov %0, %%rbp\n 7: leave", "b"(hole + 8));
    expect_page_fault("leave with an unmapped frame", 0, hole + 8);
    check_equal("faulting leave leaves rsp", trap.frame.rsp, resume_rsp);
    PROBE7("mov %0, %%rsp\n 7: enter $16, $0", "b"(hole + 64));
    expect_page_fault("enter with an unmapped stack", 2, hole + 56);
    // rep movs over the end of what is mapped: the source ends at 1 GiB.
    static u8 target[64];
    PROBE7("mov $32, %%ecx\n mov %0, %%rdi\n 7: rep movsb", "b"(target), "S"((1ull << 30) - 5));
    expect_page_fault("rep movsb across the end", 0, 1ull << 30);
    check_equal("rep movsb stopped where it was, rcx", trap.frame.rcx, 27);
    check_equal("rep movsb stopped where it was, rsi", trap.frame.rsi, 1ull << 30);
    check_equal("rep movsb stopped where it was, rdi", trap.frame.rdi, (word)target + 5);
    PROBE7("mov $32, %%ecx\n 7: rep stosq", "D"((1ull << 30) - 16));
    expect_page_fault("rep stosq across the end", 2, 1ull << 30);
    check_equal("rep stosq stopped where it was, rcx", trap.frame.rcx, 30);
    PROBE7("mov $77, %%eax\n 7: xadd %%eax, (%0)", "b"(hole));
    check_equal("faulting xadd leaves rax", trap.frame.rax, 77);
    check_equal("xadd faults as a write", trap.error, 2);
    PROBE7("mov $77, %%eax\n 7: cmpxchg %%ecx, (%0)", "b"(hole));
    check_equal("cmpxchg faults as a write", trap.error, 2);
    PROBE("testl $1, (%0)", "b"(hole));
    check_equal("test faults as a read", trap.error, 0);
    PROBE("orl $1, (%0)", "b"(hole));
    check_equal("or to memory faults as a write", trap.error, 2);
    PROBE("mov %%rax, (%0)", "b"((1ull << 30) - 3));
    expect_page_fault("store across the end of what is mapped", 2, 1ull << 30);
    PROBE("mov (%0), %%rax", "b"((1ull << 30) - 3));
    expect_page_fault("load across the end of what is mapped", 0, 1ull << 30);
    PROBE("jmp *%0", "b"(hole + 5));
    check_equal("jump to an unmapped page, vector", trap.vector, PF);
    check_equal("jump to an unmapped page, error", trap.error, 0x10);
    check_equal("jump to an unmapped page, rip is the target", trap.frame.rip, hole + 5);
    check_equal("jump to an unmapped page, cr2", trap.cr2, hole + 5);
}

// Debug exceptions.

static volatile u32 steps;
static volatile u64 last_rip, last_dr6;
static void count_step(struct frame *f) {
    steps++;
    last_rip = f->rip;
    last_dr6 = read_dr6();
    write_dr6(0xffff0ff0);
    f->flags |= FLAG_RF;
}
static void stop_step(struct frame *f) {
    count_step(f);
    f->flags &= ~(u64)FLAG_TF;
}

static void debug(void) {
    write_dr6(0xffff0ff0);
    handlers[DB] = count_step;
    steps = 0;
    asm volatile("pushf\n orl $0x100, (%%rsp)\n popf\n nop\n nop\n nop\n pushf\n andl $~0x100, (%%rsp)\n popf\n" ::: "memory");
    check_equal("single steps: nop nop nop pushf and popf", steps, 6);
    check_equal("single step sets BS in dr6", last_dr6, 0xffff4ff0);
    handlers[DB] = stop_step;
    u64 here;
    steps = 0;
    asm volatile("pushf\n orl $0x100, (%%rsp)\n popf\n nop\n 1: nop\n lea 1b(%%rip), %0" : "=r"(here)::"memory");
    check_equal("the trap of a step is behind the instruction", last_rip, here);
    steps = 0;
    asm volatile("mov $0x10, %%eax\n pushf\n orl $0x100, (%%rsp)\n popf\n mov %%eax, %%ss\n nop\n 1: nop\n lea 1b(%%rip), %0"
                 : "=r"(here)::"memory", "rax");
    check_equal("no step trap behind mov to ss", last_rip, here);
    handlers[DB] = count_step;
    // Data watch: 8 bytes, writes.
    write_dr0((word)&word0);
    write_dr7(0x90001 | 1 << 8);
    steps = 0;
    word0 = 1;
    check_equal("write watch meets a store", steps, 1);
    check_equal("write watch sets B0", last_dr6 & 0x400f, 1);
    u64 v = word0;
    check_equal("write watch lets a load pass", steps, 1);
    ((volatile u8 *)&word0)[7] = 2;
    check_equal("write watch meets a byte in the range", steps, 2);
    write_dr7(0xb0001);
    v += word0;
    check_equal("access watch meets a load", steps, 3);
    static u64 source[4], target[4];
    write_dr0((word)&target[2]);
    write_dr7(0x90001);
    asm volatile("rep movsq" ::"S"(source), "D"(target), "c"(4) : "memory");
    check_equal("write watch inside rep movs", steps, 4);
    write_dr7(0);
    // Execution breakpoint.
    u64 at;
    steps = 0;
    asm volatile("lea 1f(%%rip), %0\n mov %0, %%dr0\n mov $1, %%eax\n mov %%rax, %%dr7\n nop\n 1: nop\n xor %%eax, %%eax\n mov %%rax, %%dr7"
                 : "=&r"(at)::"rax", "memory");
    check_equal("execution breakpoint, once because of RF", steps, 1);
    check_equal("execution breakpoint is a fault", last_rip, at);
    check_equal("execution breakpoint sets B0", last_dr6 & 0x400f, 1);
    // General detect.
    handlers[DB] = 0;
    write_dr7(1 << 13);
    PROBE("mov %%dr0, %%rax", "i"(0));
    expect("general detect", DB, 0);
    check_equal("general detect sets BD", trap.dr6 & 1 << 13, 1 << 13);
    check_equal("delivery of #DB clears GD", read_dr7() & 1 << 13, 0);
    write_dr6(0xffff0ff0);
    write_dr7(0);
    (void)v;
}

// Double fault: #NP while delivering #GP is a double fault; #GP while delivering #PF too.
static void double_fault(void) {
    u8 access = idt[GP].access;
    idt[GP].access = 0x0e;
    PROBE("mov %0, %%ds", "b"(0x1000));
    check_equal("absent #GP gate: vector 8", trap.vector, DF);
    check_equal("double fault's error code", trap.error, 0);
    idt[GP].access = access;
    access = idt[UD].access;
    idt[UD].access = 0x0e;
    PROBE("ud2", "i"(0));
    expect("absent #UD gate: #NP with EXT", NP, UD << 3 | 2 | 1);
    idt[UD].access = access;
    access = idt[PF].access;
    idt[PF].access = 0x0e;
    PROBE("mov (%0), %%rax", "b"(0x8000000000ull));
    check_equal("absent #PF gate: vector 8", trap.vector, DF);
    idt[PF].access = access;
}

// Floating point exceptions.
static void floating(void) {
    u32 mxcsr = 0x1f80 & ~0x200, quiet = 0x1f80;
    asm volatile("ldmxcsr %0" ::"m"(mxcsr));
    PROBE7("mov $1, %%eax\n cvtsi2sd %%eax, %%xmm0\n xorpd %%xmm1, %%xmm1\n 7: divsd %%xmm1, %%xmm0", "i"(0));
    expect("unmasked division by zero of sse", XM, 0);
    u32 after;
    asm volatile("stmxcsr %0" : "=m"(after));
    check_equal("mxcsr says why", after & 0x3f, 4);
    write_cr4(read_cr4() & ~(1ull << 10));
    PROBE7("mov $1, %%eax\n cvtsi2sd %%eax, %%xmm0\n xorpd %%xmm1, %%xmm1\n 7: divsd %%xmm1, %%xmm0", "i"(0));
    expect("the same without OSXMMEXCPT", UD, 0);
    write_cr4(read_cr4() | 1 << 10);
    asm volatile("ldmxcsr %0" ::"m"(quiet));
    u32 reserved = 0x10000;
    PROBE("ldmxcsr %0", "m"(reserved));
    expect("ldmxcsr: reserved bit", GP, 0);
    static u8 misaligned[32] ALIGNED(16);
    PROBE("movaps (%0), %%xmm0", "b"(misaligned + 4));
    expect("movaps from a misaligned address", GP, 0);
    u16 control = 0x37f & ~4;
    asm volatile("fninit\n fldcw %0" ::"m"(control));
    PROBE7("fld1\n fldz\n fdivrp\n 7: fwait", "i"(0));
    expect("pending x87 division by zero", MF, 0);
    PROBE7("fninit\n fldcw %0\n fld1\n fldz\n fdivrp\n fnstsw %%ax\n 7: fld1", "m"(control));
    expect("x87 exception at the next instruction", MF, 0);
    asm volatile("fninit");
    write_cr0(read_cr0() | CR0_TS);
    PROBE("fld1", "i"(0));
    expect("x87 with TS", NM, 0);
    PROBE("movaps %%xmm0, %%xmm1", "i"(0));
    expect("sse with TS", NM, 0);
    PROBE("fwait", "i"(0));
    expect("fwait with TS and MP", NM, 0);
    asm volatile("clts");
    write_cr0(read_cr0() | CR0_EM);
    PROBE("fld1", "i"(0));
    expect("x87 with EM", NM, 0);
    PROBE("movaps %%xmm0, %%xmm1", "i"(0));
    expect("sse with EM", UD, 0);
    write_cr0(read_cr0() & ~(u64)CR0_EM);
    asm volatile("fninit");
}

// User mode.

#define USER_FUNCTION(name, ...)                                                                                     \
    static void name(word a) { asm volatile(__VA_ARGS__ : : "b"(a) : "rax", "rcx", "rdx", "memory", "cc"); END_USER; }
USER_FUNCTION(user_nothing, "nop")
USER_FUNCTION(user_hlt, "hlt")
USER_FUNCTION(user_cli, "cli")
USER_FUNCTION(user_in, "inb $0x71, %%al")
USER_FUNCTION(user_cr0, "mov %%cr0, %%rax")
USER_FUNCTION(user_lidt, "lidt (%0)")
USER_FUNCTION(user_rdmsr, "rdmsr")
USER_FUNCTION(user_sgdt, "sgdt (%0)")
USER_FUNCTION(user_int13, "int $13")
USER_FUNCTION(user_int3, "int3")
USER_FUNCTION(user_load, "mov (%0), %%rax")
USER_FUNCTION(user_store, "mov %%rax, (%0)")
USER_FUNCTION(user_unaligned, "mov 1(%0), %%eax")
USER_FUNCTION(user_rdtsc, "rdtsc")
USER_FUNCTION(user_ss0, "mov %%ebx, %%ss")
USER_FUNCTION(user_popf, "pushf\n orl $0x3200, (%%rsp)\n popf\n pushf\n pop %%rax")
USER_FUNCTION(user_jump, "jmp *%0")

static void user_faults(const char *name, void (*f)(word), word argument, u64 vector, u64 error) {
    run_user(f, argument);
    if (trap.vector != vector)
        check_equal(name, trap.vector, vector);
    else
        check_equal(name, trap.error, error);
}

static void user_mode(void) {
    user_faults("user mode runs", user_nothing, 0, 0x80, 0);
    check_equal("int from user mode saves cs", trap.frame.cs, 0x2b);
    check_equal("int from user mode saves ss", trap.frame.ss, 0x23);
    user_faults("hlt at CPL 3", user_hlt, 0, GP, 0);
    user_faults("cli at CPL 3", user_cli, 0, GP, 0);
    user_faults("in at CPL 3 without permission", user_in, 0, GP, 0);
    tss.io_bits[0x71 / 8] &= ~(1 << (0x71 & 7));
    user_faults("in at CPL 3 with permission", user_in, 0, 0x80, 0);
    tss.io_bits[0x71 / 8] = 0xff;
    user_faults("mov from cr0 at CPL 3", user_cr0, 0, GP, 0);
    user_faults("lidt at CPL 3", user_lidt, USER | (word)user_area, GP, 0);
    user_faults("rdmsr at CPL 3", user_rdmsr, 0, GP, 0);
    user_faults("int 13 at CPL 3 through a gate of DPL 0", user_int13, 0, GP, 13 << 3 | 2);
    user_faults("int3 at CPL 3", user_int3, 0, BP, 0);
    user_faults("load of supervisor memory", user_load, (word)user_area, PF, 5);
    user_faults("store to supervisor memory", user_store, (word)user_area, PF, 7);
    user_faults("load of unmapped memory", user_load, 0x8000000000, PF, 4);
    user_faults("jump to supervisor memory", user_jump, (word)user_area, PF, 0x15);
    user_faults("sgdt at CPL 3", user_sgdt, USER | (word)user_area, 0x80, 0);
    user_faults("rdtsc at CPL 3", user_rdtsc, 0, 0x80, 0);
    write_cr4(read_cr4() | CR4_TSD);
    user_faults("rdtsc at CPL 3 with TSD", user_rdtsc, 0, GP, 0);
    write_cr4(read_cr4() & ~(u64)CR4_TSD);
    if (cpuid(7, 0).ecx & 4) {
        write_cr4(read_cr4() | CR4_UMIP);
        user_faults("sgdt at CPL 3 with UMIP", user_sgdt, USER | (word)user_area, GP, 0);
        write_cr4(read_cr4() & ~(u64)CR4_UMIP);
    }
    user_faults("null ss at CPL 3", user_ss0, 0, GP, 0);
    user_faults("popf at CPL 3 runs", user_popf, 0, 0x80, 0);
    check_equal("popf at CPL 3 leaves IF and IOPL", trap.frame.rax & 0x3200, 0);
    user_faults("unaligned without AC", user_unaligned, USER | (word)user_area, 0x80, 0);
    write_cr0(read_cr0() | CR0_AM);
    // Also where the code and its page have been of use often, and will be again.
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 50; i++)
            run_user(user_unaligned, USER | (word)user_area);
        check_equal("unaligned without AC in user mode", trap.vector, 0x80);
        trap.vector = NONE;
        run_user_flags(user_unaligned, USER | (word)user_area, FLAG_AC | 2);
        check_equal("unaligned with AC", trap.vector, AC);
        check_equal("unaligned with AC, error code", trap.error, 0);
    }
    write_cr0(read_cr0() & ~(u64)CR0_AM);
    run_user_flags(user_nothing, 0, FLAG_TF | 2);
    check_equal("single step in user mode", trap.vector, DB);
    check_equal("delivery clears TF", read_flags() & FLAG_TF, 0);
    write_dr6(0xffff0ff0);
}

void run(void) {
    ist_setup();
    divide();
    simple();
    general_protection();
    control_registers();
    restart();
    debug();
    double_fault();
    floating();
    user_mode();
}
