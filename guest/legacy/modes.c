// What only 16- and 32-bit modes have: BOUND and INTO, segment limits, call gates, task switches, real mode,
// virtual-8086 mode, 32-bit and PAE paging, and compatibility mode's way to 64-bit code and back.
#include "legacy.h"

static u8 area[8192] ALIGNED(4096);
static u8 user_stack[4096] ALIGNED(16);

static void instructions(void) {
    static int bounds[2] = {-5, 10};
    PROBE7("mov $11, %%eax\n 7: bound %%eax, (%0)", "b"(bounds));
    expect("bound above", BR, 0);
    PROBE7("mov $-6, %%eax\n 7: bound %%eax, (%0)", "b"(bounds));
    expect("bound below", BR, 0);
    PROBE7("mov $10, %%eax\n 7: bound %%eax, (%0)", "b"(bounds));
    expect_none("bound inside");
    PROBE7("mov $0x7fffffff, %%eax\n inc %%eax\n 7: into", "i"(0));
    expect_after("into with overflow", OF, 0, 1);
    PROBE7("xor %%eax, %%eax\n 7: into", "i"(0));
    expect_none("into without");
    PROBE("aam $0", "i"(0));
    expect("aam 0", DE, 0);
    u32 ax;
    asm volatile("mov $0x0105, %%ax\n add $9, %%al\n aaa\n movzwl %%ax, %0" : "=r"(ax)::"eax", "cc");
    check_equal("aaa", ax, 0x0204);
    asm volatile("mov $0x79, %%al\n add $0x35, %%al\n daa\n movzbl %%al, %0" : "=r"(ax)::"eax", "cc");
    check_equal("daa", ax, 0x14);
    asm volatile("pusha\n popa");
    PROBE(".byte 0x0f, 0x05", "i"(0));
    check_equal("syscall outside of 64-bit mode without SCE", trap.vector, UD);
}

static void segments(void) {
    gdt[11] = descriptor((u32)area, 0xff, 0x93, 4);   // 58: 256 bytes
    gdt[12] = descriptor((u32)area, 0xff, 0x97, 4);   // 60: expand-down, from 0x100
    gdt[13] = descriptor((u32)area, 0xff, 0x91, 4);   // 68: read-only
    gdt[14] = descriptor(0, 0xfffff, 0x99, 0xc);      // 70: execute-only
    gdt[15] = descriptor(0, 0xfffff, 0xfb, 0xc);      // 78: code, DPL 3
    gdt[16] = descriptor(0, 0xfffff, 0x9f, 0xc);      // 80: conforming code
    area[0xff] = 0x5a;
    PROBE7("mov %0, %%fs\n 7: mov %%fs:0xff, %%al", "b"(0x58));
    expect_none("last byte of a segment");
    PROBE7("mov %0, %%fs\n 7: mov %%fs:0x100, %%al", "b"(0x58));
    expect("behind a segment's limit", GP, 0);
    PROBE7("mov %0, %%fs\n 7: mov %%fs:0xfd, %%eax", "b"(0x58));
    expect("across a segment's limit", GP, 0);
    PROBE7("mov %0, %%fs\n 7: mov %%fs:0xff, %%al", "b"(0x60));
    expect("below an expand-down segment", GP, 0);
    PROBE7("mov %0, %%fs\n 7: mov %%fs:0x100, %%al", "b"(0x60));
    expect_none("inside an expand-down segment");
    PROBE7("mov %0, %%fs\n mov %%fs:0, %%al\n 7: mov %%al, %%fs:0", "b"(0x68));
    expect("store to a read-only segment", GP, 0);
    PROBE("mov %0, %%fs", "b"(0x70));
    expect("execute-only segment in fs", GP, 0x70);
    PROBE7("mov $0x08, %%eax\n mov %%eax, %%fs\n 7: mov %%al, %%fs:0x1000", "i"(0));
    expect("store to a code segment", GP, 0);
    PROBE7("xor %%eax, %%eax\n mov %%eax, %%fs\n 7: mov %%fs:0, %%al", "i"(0));
    expect("load through the null selector", GP, 0);
    PROBE("mov %0, %%ss", "b"(0));
    expect("null selector in ss", GP, 0);
    PROBE("mov %0, %%ss", "b"(0x40));
    expect("absent segment in ss", SS, 0x40);
    PROBE("mov %0, %%fs", "b"(0x40));
    expect("absent segment in fs", NP, 0x40);
    PROBE("mov %0, %%cs", "b"(0x10));
    expect("mov to cs", UD, 0);
    gdt[11] &= ~(1ull << 40);
    PROBE("mov %0, %%fs", "b"(0x58));
    check_equal("loading sets the accessed bit", gdt[11] >> 40 & 1, 1);
    u32 right, ok;
    asm volatile("lar %2, %0\n setz %b1" : "=r"(right), "=q"(ok) : "r"(0x58));
    check_equal("lar", right & 0xfff00 & ~0xf0000, 0x9300);
    check_equal("lar sets ZF", ok & 1, 1);
    asm volatile("lsl %2, %0\n setz %b1" : "=r"(right), "=q"(ok) : "r"(0x10));
    check_equal("lsl scales the limit", right, 0xffffffff);
    asm volatile("verw %w1\n setz %b0" : "=q"(ok) : "r"(0x68));
    check_equal("verw of a read-only segment", ok & 1, 0);
    asm volatile("verr %w1\n setz %b0" : "=q"(ok) : "r"(0x70));
    check_equal("verr of an execute-only segment", ok & 1, 0);
    asm volatile("lar %2, %0\n setz %b1" : "=r"(right), "=q"(ok) : "r"(0x1000));
    check_equal("lar beyond the table", ok & 1, 0);
    u32 rpl = 0x10;
    asm volatile("arpl %w1, %w0" : "+r"(rpl) : "r"(3));
    check_equal("arpl", rpl, 0x13);
    PROBE("ljmp $0x78, $8f", "i"(0));
    expect("far jump to code of DPL 3", GP, 0x78);
    PROBE("ljmp $0x80, $8f", "i"(0));
    expect_none("far jump to conforming code");
    asm volatile("ljmp $8, $1f\n 1:");
    PROBE("ljmp $0x40, $8f", "i"(0));
    expect("far jump to data", GP, 0x40);
}

static void user_end(void) { asm volatile("int $0x80"); }
static void user_far_call(void) { asm volatile("lcall $0x8b, $0\n int $0x80"); }
static void user_cli(void) { asm volatile("cli\n int $0x80"); }
static void user_into(void) { asm volatile("mov $0x7fffffff, %eax\n inc %eax\n into\n int $0x80"); }
static volatile u32 gate_cs, gate_ss, gate_argument;
void call_gate_target(void);
asm("call_gate_target: mov %ss, %eax\n mov %eax, %ds\n mov %cs, %eax\n mov %eax, gate_cs\n mov %ss, %eax\n mov %eax, gate_ss\n mov 8(%esp), %eax\n mov %eax, gate_argument\n lret $4");

static void run_user(void (*f)(void)) {
    trap.vector = NONE;
    enter((u32)f, 0x1b, 2, (u32)user_stack + 2048, 0x23);
    resume_rip = 0;
}

static void privilege(void) {
    run_user(user_end);
    check_equal("int from CPL 3", trap.vector, 0x80);
    check_equal("it saves cs", trap.frame.cs, 0x1b);
    check_equal("it saves ss", trap.frame.ss, 0x23);
    run_user(user_cli);
    check_equal("cli at CPL 3", trap.vector << 8 | trap.error, GP << 8);
    run_user(user_into);
    check_equal("into at CPL 3", trap.vector, OF);
    // 88: call gate of DPL 3 with one argument.
    u32 target = (u32)call_gate_target;
    gdt[17] = (target & 0xffff) | 8 << 16 | 1ull << 32 | 0xecull << 40 | (u64)(target >> 16) << 48;
    *(u32 *)(user_stack + 2048) = 0x12345678;
    run_user(user_far_call);
    check_equal("call gate: comes back", trap.vector, 0x80);
    check_equal("call gate: inner cs", gate_cs, 8);
    check_equal("call gate: inner ss", gate_ss, 0x10);
    check_equal("call gate: copies the argument", gate_argument, 0x12345678);
    check_equal("call gate: drops the argument on both stacks", trap.frame.esp, (u32)user_stack + 2052);
    gdt[17] &= ~(3ull << 45);
    run_user(user_far_call);
    check_equal("call gate of DPL 0", trap.vector << 8 | trap.error, GP << 8 | 0x88);
    gdt[17] |= 3ull << 45;
    gdt[17] &= ~(1ull << 47);
    run_user(user_far_call);
    check_equal("absent call gate", trap.vector << 8 | trap.error, NP << 8 | 0x88);
}

static struct tss second ALIGNED(16);
static u8 task_stack[4096] ALIGNED(16);
static volatile u32 task_runs, task_flags, task_link;
static void task_body(void) {
    for (;;) {
        task_runs++;
        task_flags = read_flags();
        task_link = second.link;
        asm volatile("iret");
    }
}

static void tasks(void) {
    second.eip = (u32)task_body;
    second.flags = 2;
    second.esp = (u32)task_stack + 4000;
    second.es = second.ss = second.ds = 0x10;
    second.cs = 8;
    second.io_map = 104;
    gdt[6] = descriptor((u32)&second, 103, 0x89, 0);
    asm volatile("lcall $0x30, $0" ::: "memory", "eax", "ecx", "edx");
    check_equal("far call to a task", task_runs, 1);
    check_equal("it sets NT", task_flags & FLAG_NT, FLAG_NT);
    check_equal("it links back", task_link, 0x28);
    check_equal("it sets TS", read_cr0() & CR0_TS, CR0_TS);
    check_equal("iret leaves the task available", gdt[6] >> 40 & 0xff, 0x89);
    check_equal("the first is busy", gdt[5] >> 40 & 0xff, 0x8b);
    asm volatile("clts");
    idt[0x90] = 0x30ull << 16 | 0x85ull << 40;
    asm volatile("int $0x90" ::: "memory");
    check_equal("task gate", task_runs, 2);
    asm volatile("clts");
    gdt[6] = descriptor((u32)&second, 50, 0x89, 0);
    PROBE("lcall $0x30, $0", "i"(0));
    expect("task switch to a short TSS", TS, 0x30);
    gdt[6] = descriptor((u32)&second, 103, 0x8b, 0);
    PROBE("lcall $0x30, $0", "i"(0));
    expect("task switch to a busy TSS", GP, 0x30);
    gdt[6] = descriptor((u32)&second, 103, 0x09, 0);
    PROBE("lcall $0x30, $0", "i"(0));
    expect("task switch to an absent TSS", NP, 0x30);
}

// Real mode and virtual-8086 mode run code at 0x1000:0.
static u8 *const low = (u8 *)0x10000;
static void vm86(const void *code, u32 len, u32 flags) {
    memcpy(low, code, len);
    trap.vector = NONE;
    enter(0, 0x1000, flags | FLAG_VM | 2, 0x1000, 0x2000);
    resume_rip = 0;
}

static void virtual_8086(void) {
    static const u8 hlt[] = {0xb8, 0x34, 0x12, 0xf4};
    vm86(hlt, sizeof hlt, 0);
    check_equal("hlt in virtual-8086 mode", trap.vector << 8 | trap.error, GP << 8);
    check_equal("its ip", trap.frame.eip, 3);
    check_equal("its cs", trap.frame.cs, 0x1000);
    check_equal("its ss:sp", trap.frame.ss << 16 | trap.frame.esp, 0x20001000);
    check_equal("its ds is saved", trap.frame.vm_ds, 0x30);
    check_equal("ds is null in the handler's frame", trap.frame.ds & 0xffff, 0);
    check_equal("its ax", trap.frame.eax & 0xffff, 0x1234);
    check_equal("VM is set in the saved flags", trap.frame.flags & FLAG_VM, FLAG_VM);
    static const u8 store[] = {0xb8, 0, 0x20, 0x8e, 0xd8, 0xc7, 0x06, 0x10, 0, 0xcd, 0xab, 0xf4};
    vm86(store, sizeof store, 0);
    check_equal("segment times sixteen", *(u16 *)0x20010, 0xabcd);
    static const u8 wrap[] = {0x66, 0xbb, 0xff, 0xff, 0, 0, 0x8b, 0x07, 0xf4};
    vm86(wrap, sizeof wrap, 0);
    check_equal("a word across 64 KiB", trap.vector << 8 | (trap.frame.eip & 0xff), GP << 8 | 6);
    static const u8 cli[] = {0xfa, 0xf4};
    vm86(cli, sizeof cli, 0);
    check_equal("cli with IOPL 0", trap.frame.eip, 0);
    vm86(cli, sizeof cli, 3 << 12);
    check_equal("cli with IOPL 3", trap.frame.eip, 1);
    static const u8 interrupt[] = {0xcd, 0x21, 0xf4};
    vm86(interrupt, sizeof interrupt, 0);
    check_equal("int with IOPL 0", trap.vector << 8 | trap.error, GP << 8);
    vm86(interrupt, sizeof interrupt, 3 << 12);
    check_equal("int with IOPL 3 through a gate of DPL 0", trap.vector << 8 | trap.error, GP << 8 | (0x21 * 8 + 2));
    static const u8 in[] = {0xe4, 0x71, 0xf4};
    vm86(in, sizeof in, 3 << 12);
    check_equal("in without permission", trap.frame.eip, 0);
    tss.io_bits[0x71 / 8] &= ~2;
    vm86(in, sizeof in, 0);
    check_equal("in with permission", trap.frame.eip, 2);
    tss.io_bits[0x71 / 8] |= 2;
    if (cpuid(1, 0).edx & 2) {
        write_cr4(read_cr4() | CR4_VME);
        *(u16 *)(0x21 * 4) = 0x100;
        *(u16 *)(0x21 * 4 + 2) = 0x1000;
        low[0x100] = 0xf4;
        vm86(interrupt, sizeof interrupt, 0);
        check_equal("int redirected by VME: cs:ip", trap.frame.cs << 16 | trap.frame.eip, 0x10000100);
        check_equal("it pushes ip", *(u16 *)0x20ffa, 2);
        vm86(cli, sizeof cli, 0);
        check_equal("cli with VME", trap.frame.eip, 1);
        write_cr4(read_cr4() & ~CR4_VME);
    }
    static const u8 lgdt[] = {0x0f, 0x00, 0xc0};
    vm86(lgdt, sizeof lgdt, 0);
    check_equal("sldt in virtual-8086 mode", trap.vector, UD);
}

// To real mode and back: interrupts through the table at 0, segment arithmetic, 16-bit wrap.
void real_mode(void);
asm(".globl real_mode\n real_mode: pusha\n mov %esp, real_esp\n sidt real_idt\n lidt real_table\n ljmp $0x48, $0\n"
    ".globl real_return\n real_return: mov $0x10, %eax\n mov %eax, %ds\n mov %eax, %es\n mov %eax, %ss\n mov real_esp, %esp\n lidt real_idt\n popa\n ret\n"
    ".data\n real_esp: .long 0\n real_idt: .fill 6, 1, 0\n real_table: .word 0x3ff\n .long 0\n"
    ".globl real_code, real_code_end\n .code16\n real_code:\n"
    "mov $0x50, %ax\n mov %ax, %ds\n mov %ax, %es\n mov %ax, %ss\n"
    "mov %cr0, %eax\n and $~1, %al\n mov %eax, %cr0\n ljmp $0x1000, $1f - real_code\n"
    "1: mov $0x1800, %ax\n mov %ax, %ds\n mov %ax, %ss\n mov $0x800, %sp\n"
    "movw $0x4321, 0\n int $0x60\n mov %ax, 2\n"
    "pushf\n pop %ax\n mov %ax, 4\n"
    "mov $0xffff, %ax\n mov %ax, %es\n mov %es:0x10, %ax\n mov %ax, 6\n"
    "mov $0xffff, %bx\n mov $5, %cx\n 2: inc %bx\n loop 2b\n mov %bx, 8\n"
    "xor %dx, %dx\n xor %cx, %cx\n mov $7, %ax\n div %cx\n mov %ax, 10\n"
    "lgdtl %cs:3f - real_code\n mov %cr0, %eax\n or $1, %al\n mov %eax, %cr0\n ljmpl $8, $real_return\n"
    "3: .word 27 * 8 - 1\n .long gdt\n"
    "int60: mov $0x9876, %ax\n iret\n"
    "int0: push %bp\n mov %sp, %bp\n addw $2, 2(%bp)\n pop %bp\n mov $0x00de, %ax\n iret\n"
    "real_code_end: .code32\n .text");
extern u8 real_code[], real_code_end[], int60[], int0[];

static void real(void) {
    memcpy(low, real_code, real_code_end - real_code);
    gdt[9] = descriptor(0x10000, 0xffff, 0x9b, 0);
    u16 *vectors = (u16 *)0;
    asm volatile("" : "+r"(vectors));
    vectors[0x60 * 2] = int60 - real_code;
    vectors[0x60 * 2 + 1] = 0x1000;
    vectors[0] = int0 - real_code;
    vectors[1] = 0x1000;
    *(u16 *)0x100000 = *(u16 *)0x100000;
    volatile u16 *result = (u16 *)0x18000;
    real_mode();
    check_equal("real mode: store through ds", result[0], 0x4321);
    check_equal("real mode: int and iret", result[1], 0x9876);
    check_equal("real mode: bit 1 of the flags", result[2] & 2, 2);
    check_equal("real mode: ffff:10 is 1 MiB", result[3], *(u16 *)0x100000);
    check_equal("real mode: 16-bit registers wrap", result[4], 4);
    check_equal("real mode: division error is a fault", result[5], 0xde);
    check_equal("back in protected mode", read_cr0() & 1, 1);
}

// 32-bit paging with 4 KiB and 4 MiB pages, then PAE.
static u32 directory[1024] ALIGNED(4096), table[1024] ALIGNED(4096);
static u64 pdpt[4] ALIGNED(32), directories[512] ALIGNED(4096), pae_table[512] ALIGNED(4096);

static void paging(void) {
    volatile u32 *window = (u32 *)0x40000000, *large = (u32 *)0x40400000;
    write_cr4(read_cr4() | CR4_PSE);
    for (u32 i = 0; i < 16; i++)
        directory[i] = i << 22 | PTE_P | PTE_W | PTE_PS;
    directory[0xfee00000 >> 22] = 0xfec00000 | PTE_P | PTE_W | PTE_PS;
    directory[0x100] = (u32)table | PTE_P | PTE_W | PTE_U;
    directory[0x101] = PTE_P | PTE_W | PTE_PS;
    table[0] = (u32)area | PTE_P | PTE_W;
    table[1] = (u32)area | PTE_P;
    *(u32 *)area = 0x55;
    write_cr3((u32)directory);
    write_cr0(read_cr0() | CR0_PG | CR0_WP);
    check_equal("32-bit paging", *window, 0x55);
    check_equal("load sets A", table[0] & 0xfff, PTE_P | PTE_W | PTE_A);
    *window = 0x66;
    check_equal("store sets D", table[0] & 0xfff, PTE_P | PTE_W | PTE_A | PTE_D);
    check_equal("4 MiB page", large[(u32)area / 4], 0x66);
    check_equal("4 MiB page, A and no D", directory[0x101] & 0xfff, PTE_P | PTE_W | PTE_PS | PTE_A);
    PROBE("movl $1, (%0)", "b"(0x40001000));
    expect("store to a read-only page", PF, 3);
    check_equal("cr2", trap.cr2, 0x40001000);
    PROBE("movl (%0), %%eax", "b"(0x50000000));
    expect("load of an unmapped page", PF, 0);
    PROBE("jmp *%0", "b"(0x50000000));
    check_equal("fetch has no bit of its own without NX", trap.vector << 8 | trap.error, PF << 8);
    write_cr0(read_cr0() & ~CR0_PG);
    for (u32 i = 0; i < 32; i++)
        directories[i] = (u64)i << 21 | PTE_P | PTE_W | PTE_PS;
    pdpt[0] = pdpt[1] = (u32)directories | PTE_P;
    directories[64] = (u32)pae_table | PTE_P | PTE_W;
    pae_table[3] = (u32)area | PTE_P | PTE_W | PTE_NX;
    wrmsr(0xc0000080, rdmsr(0xc0000080) | 1 << 11);
    write_cr4(read_cr4() | CR4_PAE);
    write_cr3((u32)pdpt);
    write_cr0(read_cr0() | CR0_PG);
    window = (u32 *)(0x40000000 + (64 << 21) + 0x3000);
    check_equal("PAE paging", *window, 0x66);
    check_equal("PAE, A", pae_table[3] & 0xfff, PTE_P | PTE_W | PTE_A);
    PROBE("jmp *%0", "b"(window));
    check_equal("PAE, no-execute page", trap.vector << 8 | trap.error, PF << 8 | 0x11);
    pdpt[2] = pdpt[0];
    PROBE("movl (%0), %%eax", "b"(0x80100000));
    check_equal("PDPTEs are read by mov to cr3 only", trap.vector << 8 | trap.error, PF << 8);
    write_cr3((u32)pdpt);
    PROBE("movl (%0), %%eax", "b"(0x80100000));
    expect_none("and now are");
    pdpt[3] = PTE_P | PTE_W;
    PROBE("mov %0, %%cr3", "b"(pdpt));
    expect("reserved bit in a PDPTE", GP, 0);
    pdpt[3] = 0;
    write_cr0(read_cr0() & ~CR0_PG);
    write_cr4(read_cr4() & ~CR4_PAE);
}

// Long mode from here, a 64-bit function by a far call from compatibility mode, and back to legacy mode.
static u64 long_pml4[512] ALIGNED(4096), long_pdpt[512] ALIGNED(4096), long_pd[512] ALIGNED(4096);
u64 long_sum;
void long_function(void);
asm(".code64\n long_function: mov $0x123456789, %rax\n mov %rax, %r15\n lea (%r15,%r15), %rax\n mov %ecx, %ecx\n mov %rax, (%rcx)\n lretl\n .code32");

static void long_mode(void) {
    long_pml4[0] = (u32)long_pdpt | 3;
    long_pdpt[0] = (u32)long_pd | 3;
    for (u32 i = 0; i < 64; i++)
        long_pd[i] = (u64)i << 21 | PTE_P | PTE_W | PTE_PS;
    gdt[18] = 0x00af9b000000ffff; // 90
    write_cr4(read_cr4() | CR4_PAE);
    write_cr3((u32)long_pml4);
    u64 efer = rdmsr(0xc0000080);
    wrmsr(0xc0000080, efer | 1 << 8);
    write_cr0(read_cr0() | CR0_PG);
    u64 in_long = rdmsr(0xc0000080);
    asm volatile("lcall $0x90, $long_function" ::"c"(&long_sum) : "eax", "memory");
    write_cr0(read_cr0() & ~CR0_PG);
    u64 after = rdmsr(0xc0000080);
    wrmsr(0xc0000080, efer);
    write_cr4(read_cr4() & ~CR4_PAE);
    check_equal("LMA is set with paging", in_long >> 8 & 5, 5);
    check_equal("64-bit code called from compatibility mode", long_sum, 0x2468acf12);
    check_equal("LMA is clear without paging", after >> 8 & 5, 1);
}

void run(void) {
    instructions();
    segments();
    privilege();
    tasks();
    virtual_8086();
    real();
    paging();
    long_mode();
}
