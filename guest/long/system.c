// System instructions and registers in 64-bit mode: MSRs, SYSCALL, SYSENTER, far transfers, IRET, compatibility
// mode, XSAVE, CPUID against what executes.
#include "long.h"

enum { EFER = 0xc0000080, STAR = 0xc0000081, LSTAR = 0xc0000082, FMASK = 0xc0000084, FS_BASE = 0xc0000100,
       GS_BASE = 0xc0000101, KERNEL_GS_BASE = 0xc0000102 };

// Writes an MSR under a probe.
static void try_wrmsr(u32 msr, u64 v) {
    PROBE7("mov %0, %%ecx\n mov %1, %%eax\n mov %2, %%edx\n 7: wrmsr", "b"(msr), "S"((u32)v), "D"((u32)(v >> 32)));
}

static void msrs(void) {
    u64 bad = 0x0000800000000000;
    static const struct {
        const char *name;
        u32 msr;
    } addresses[] = {{"FS base: non-canonical", FS_BASE}, {"GS base: non-canonical", GS_BASE},
                     {"kernel GS base: non-canonical", KERNEL_GS_BASE}, {"LSTAR: non-canonical", LSTAR},
                     {"SYSENTER_EIP: non-canonical", 0x176}, {"SYSENTER_ESP: non-canonical", 0x175}};
    for (u32 i = 0; i < sizeof addresses / sizeof *addresses; i++) {
        try_wrmsr(addresses[i].msr, bad);
        expect(addresses[i].name, GP, 0);
    }
    try_wrmsr(EFER, rdmsr(EFER) | 1 << 9);
    expect("EFER: reserved bit", GP, 0);
    try_wrmsr(EFER, rdmsr(EFER) & ~(1ull << 8));
    expect("EFER: LME with paging", GP, 0);
    try_wrmsr(0x277, 0x02);
    expect("PAT: type 2 is reserved", GP, 0);
    try_wrmsr(0x277, 0x0007040600070406);
    expect_none("PAT");
    try_wrmsr(0x12345, 0);
    expect("an MSR that is not there", GP, 0);
    wrmsr(FS_BASE, 0xffff888000001234);
    check_equal("FS base reads back", rdmsr(FS_BASE), 0xffff888000001234);
    asm volatile("mov %0, %%fs" ::"r"(0));
    note("FS base after a null selector (0: cleared, else kept)", rdmsr(FS_BASE));
    static u64 data[2] = {0x1111, 0x2222};
    wrmsr(GS_BASE, (word)data);
    wrmsr(KERNEL_GS_BASE, (word)(data + 1));
    u64 got;
    asm volatile("mov %%gs:0, %0" : "=r"(got));
    check_equal("load through GS", got, 0x1111);
    asm volatile("swapgs\n mov %%gs:0, %0\n swapgs" : "=r"(got));
    check_equal("swapgs", got, 0x2222);
    if (cpuid(7, 0).ebx & 1) {
        PROBE("rdfsbase %%rax", "i"(0));
        expect("rdfsbase without FSGSBASE", UD, 0);
        write_cr4(read_cr4() | CR4_FSGSBASE);
        asm volatile("wrfsbase %1\n rdfsbase %0" : "=r"(got) : "r"(0x123456789ull));
        check_equal("wrfsbase and rdfsbase", got, 0x123456789);
        PROBE("wrgsbase %0", "b"(bad));
        expect("wrgsbase: non-canonical", GP, 0);
        write_cr4(read_cr4() & ~(u64)CR4_FSGSBASE);
    }
}

static volatile u64 call_rcx, call_r11, call_flags, call_cs, call_ss, call_rsp;
void syscall_entry(void);
asm("syscall_entry: mov %rsp, call_rsp(%rip)\n lea syscall_stack+4096(%rip), %rsp\n mov %rcx, call_rcx(%rip)\n mov %r11, call_r11(%rip)\n"
    "pushfq\n pop call_flags(%rip)\n mov %cs, %eax\n mov %rax, call_cs(%rip)\n mov %ss, %eax\n mov %rax, call_ss(%rip)\n"
    "mov call_rsp(%rip), %rsp\n cmp $1, %rdi\n je 1f\n sysretq\n 1: sysretl\n"
    ".lcomm syscall_stack, 4096");
static void user_syscall(word way) {
    u64 cs, ss;
    asm volatile("syscall\n mov %%cs, %k0\n mov %%ss, %k1" : "=&a"(cs), "=&d"(ss) : "D"(way) : "rcx", "r11", "memory");
    asm volatile("int $0x80" ::"a"(cs), "d"(ss));
}

static void syscall(void) {
    wrmsr(EFER, rdmsr(EFER) & ~1ull);
    run_user(user_syscall, 0);
    check_equal("syscall without SCE", trap.vector, UD);
    wrmsr(EFER, rdmsr(EFER) | 1);
    wrmsr(STAR, 0x1bull << 48 | 8ull << 32);
    wrmsr(LSTAR, (word)syscall_entry);
    wrmsr(FMASK, FLAG_IF | FLAG_DF | FLAG_CF);
    run_user_flags(user_syscall, 0, 2 | FLAG_DF);
    check_equal("sysret to 64-bit code: comes back", trap.vector, 0x80);
    check_equal("sysret: cs", trap.frame.rax & 0xffff, 0x2b);
    check_equal("sysret: ss", trap.frame.rdx & 0xffff, 0x23);
    check_equal("syscall: cs", call_cs, 8);
    check_equal("syscall: ss", call_ss, 0x10);
    check_equal("syscall: rcx is the address behind it", call_rcx, trap.frame.rcx);
    check_equal("syscall: r11 is the flags", call_r11 & FLAG_DF, FLAG_DF);
    check_equal("syscall: flags are masked", call_flags & FLAG_DF, 0);
    check_equal("sysret: flags come from r11", trap.frame.flags & FLAG_DF, FLAG_DF);
    PROBE7("mov %0, %%rcx\n mov $2, %%r11\n 7: sysretq", "b"(0x0000800000000000));
    expect("sysret to a non-canonical address", GP, 0);
}

void gate_target(void);
asm("gate_target: mov %cs, %eax\n lretq");

static void far_transfers(void) {
    u64 cs;
    // Through compatibility mode: 16-, 32-bit code at the low alias of this very code.
    asm volatile("ljmp *1f(%%rip)\n .pushsection .data\n 1: .long 2f\n .word 0x40\n .popsection\n"
                 ".code32\n 2: mov %%cs, %%eax\n mov $0x12345678, %%ecx\n dec %%ecx\n ljmp $8, $3f\n .code64\n 3:"
                 : "=a"(cs)::"rcx", "memory");
    check_equal("compatibility mode and back", cs, 0x40);
    PROBE7("pushq $0x10\n lea 8f(%%rip), %%rax\n push %%rax\n 7: lretq", "i"(0));
    expect("far return to a data segment", GP, 0x10);
    PROBE7("pushq $0x2b\n lea 8f(%%rip), %%rax\n push %%rax\n 7: lretq", "i"(0));
    note("far return outwards with rubbish for a stack, vector", trap.vector);
    gdt[12] = 0x00ef9b000000ffff; // 60: L and D both
    PROBE7("pushq $0x60\n lea 8f(%%rip), %%rax\n push %%rax\n 7: lretq", "i"(0));
    expect("code segment with L and D", GP, 0x60);
    // A 64-bit call gate.
    static u64 seen;
    u64 at = (word)gate_target;
    gdt[14] = (at & 0xffff) | 8 << 16 | 0x8cull << 40 | (at >> 16 & 0xffff) << 48; // 70
    gdt[15] = at >> 32;
    static const struct {
        u32 offset;
        u16 selector;
    } PACKED pointer = {0, 0x70};
    PROBE7("7: lcall *%1\n mov %%rax, %0", "m"(seen), "m"(pointer));
    expect_none("call gate of 16 bytes");
    check_equal("call gate: cs", seen, 8);
    gdt[15] |= 1ull << 40;
    PROBE("lcall *%0", "m"(pointer));
    expect("call gate whose upper half has a type", GP, 0x70);
    PROBE7("mov %%rsp, %%rdx\n pushq $0x10\n push %%rdx\n pushfq\n pushq $8\n lea 9f(%%rip), %%rax\n push %%rax\n 7: iretq\n 9:", "i"(0));
    expect_none("iretq to the same privilege");
    PROBE7("pushq $0x10\n pushq $0\n pushq $0x4002\n popfq\n 7: iretq", "i"(0));
    expect("iretq with NT", GP, 0);
    PROBE7("mov %%rsp, %%rdx\n pushq $0x10\n push %%rdx\n pushfq\n pushq $8\n push %0\n 7: iretq", "b"(0x0000800000000000));
    check_equal("iretq to a non-canonical address", trap.vector << 8 | trap.error, GP << 8);
}

static void xsave(void) {
    static u8 area[1024] ALIGNED(64), again[1024] ALIGNED(64);
    if (!(cpuid(1, 0).ecx & 1 << 26))
        return;
    PROBE7("xor %%ecx, %%ecx\n 7: xgetbv", "i"(0));
    expect("xgetbv without OSXSAVE", UD, 0);
    check_equal("OSXSAVE in cpuid is clear", cpuid(1, 0).ecx >> 27 & 1, 0);
    write_cr4(read_cr4() | CR4_OSXSAVE);
    check_equal("and follows cr4", cpuid(1, 0).ecx >> 27 & 1, 1);
    u32 supported = cpuid(0xd, 0).eax;
    PROBE7("xor %%ecx, %%ecx\n xor %%edx, %%edx\n mov $6, %%eax\n 7: xsetbv", "i"(0));
    expect("xcr0 without x87", GP, 0);
    PROBE7("xor %%ecx, %%ecx\n xor %%edx, %%edx\n mov $5, %%eax\n 7: xsetbv", "i"(0));
    expect("xcr0: AVX without SSE", GP, 0);
    PROBE7("mov $1, %%ecx\n xor %%edx, %%edx\n mov $1, %%eax\n 7: xsetbv", "i"(0));
    expect("xcr1", GP, 0);
    u32 want = supported & 7;
    asm volatile("xsetbv" ::"c"(0), "a"(want), "d"(0));
    check_equal("size of what is enabled", cpuid(0xd, 0).ebx, want & 4 ? 832 : 576);
    PROBE7("mov $-1, %%eax\n mov %%eax, %%edx\n 7: xsave 8(%0)", "b"(area));
    expect("xsave to a misaligned area", GP, 0);
    asm volatile("fninit\n fld1\n xorps %%xmm0, %%xmm0\n pcmpeqb %%xmm1, %%xmm1\n xsave %0"
                 : "+m"(area) : "a"(-1), "d"(-1));
    check_equal("xsave: XSTATE_BV has x87 and SSE", *(u64 *)(area + 512) & 3, 3);
    check_equal("xsave: xmm1", *(u64 *)(area + 176), ~0ull);
    check_equal("xsave: one register in the tag word", area[4], 0x80);
    asm volatile("fninit\n pxor %%xmm1, %%xmm1\n xrstor %1\n xsave %0" : "+m"(again) : "m"(area), "a"(-1), "d"(-1));
    check_equal("xrstor brings it back", memcmp(area, again, 512), 0);
    *(u64 *)(area + 512) = 1ull << 62;
    PROBE7("mov $-1, %%eax\n mov %%eax, %%edx\n 7: xrstor (%0)", "b"(area));
    expect("xrstor: unknown component", GP, 0);
    *(u64 *)(area + 512) = 0;
    asm volatile("xrstor %1\n movq %%xmm1, %0" : "=r"(*(u64 *)again) : "m"(area), "a"(-1), "d"(-1));
    check_equal("xrstor: a component not in XSTATE_BV is initialised", *(u64 *)again, 0);
    if (want & 4) {
        asm volatile("xsetbv" ::"c"(0), "a"(3), "d"(0));
        PROBE("vpxor %%ymm0, %%ymm0, %%ymm0", "i"(0));
        expect("avx with AVX off in xcr0", UD, 0);
        asm volatile("xsetbv" ::"c"(0), "a"(7), "d"(0));
        PROBE("vpxor %%ymm0, %%ymm0, %%ymm0", "i"(0));
        expect_none("avx with AVX on");
        write_cr0(read_cr0() | CR0_TS);
        PROBE("vpxor %%ymm0, %%ymm0, %%ymm0", "i"(0));
        expect("avx with TS", NM, 0);
        asm volatile("clts");
    }
    write_cr4(read_cr4() & ~(u64)CR4_OSXSAVE);
    if (want & 4) {
        PROBE("vpxor %%ymm0, %%ymm0, %%ymm0", "i"(0));
        expect("avx without OSXSAVE", UD, 0);
    }
}

// Each feature bit against whether its instruction is #UD.
#define FEATURE(name, present, text)                                                                                 \
    PROBE(text, "b"(scratch));                                                                                       \
    check_equal(name, trap.vector == UD, !(present))
static void features(void) {
    static u8 scratch[64] ALIGNED(64);
    struct cpuid one = cpuid(1, 0), seven = cpuid(7, 0), extended = cpuid(0x80000001, 0);
    FEATURE("popcnt", one.ecx & 1 << 23, "popcnt %%eax, %%eax");
    FEATURE("sse3", one.ecx & 1, "lddqu (%0), %%xmm0");
    FEATURE("ssse3", one.ecx & 1 << 9, "pshufb %%xmm0, %%xmm0");
    FEATURE("sse4.1", one.ecx & 1 << 19, "pmuldq %%xmm0, %%xmm0");
    FEATURE("sse4.2", one.ecx & 1 << 20, "crc32b %%al, %%eax");
    FEATURE("movbe", one.ecx & 1 << 22, "movbe (%0), %%eax");
    FEATURE("aes", one.ecx & 1 << 25, "aesenc %%xmm0, %%xmm0");
    FEATURE("pclmulqdq", one.ecx & 2, "pclmulqdq $0, %%xmm0, %%xmm0");
    FEATURE("rdrand", one.ecx & 1 << 30, "rdrand %%eax");
    FEATURE("rdseed", seven.ebx & 1 << 18, "rdseed %%eax");
    FEATURE("adx", seven.ebx & 1 << 19, "adcx %%eax, %%eax");
    FEATURE("sha", seven.ebx & 1 << 29, "sha1nexte %%xmm0, %%xmm0");
    FEATURE("rdpid", seven.ecx & 1 << 22, ".byte 0xf3, 0x0f, 0xc7, 0xf8");
    FEATURE("clflushopt", seven.ebx & 1 << 23, "clflushopt (%0)");
    FEATURE("rdtscp", extended.edx & 1 << 27, "rdtscp");
    FEATURE("monitor", one.ecx & 1 << 3, "mov %0, %%rax\n xor %%ecx, %%ecx\n xor %%edx, %%edx\n monitor");
    FEATURE("vmxon is never there", 0, ".byte 0xf3, 0x0f, 0xc7, 0x33");
}

void run(void) {
    msrs();
    syscall();
    far_transfers();
    xsave();
    features();
}
