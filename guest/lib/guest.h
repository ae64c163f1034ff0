// What every guest program uses: ports, control registers, the console, checks.
//
// A program is freestanding C with its assembly inline. It prints "PASS name" or "FAIL name: detail" for each
// check and ends with "DONE n passed m failed"; then it turns the machine off.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned long word;

#define NAKED __attribute__((naked))
#define PACKED __attribute__((packed))
#define ALIGNED(n) __attribute__((aligned(n)))

// Console and checks (console.c).
void put(const char *text);
void put_hex(u64 value);
void check(const char *name, int ok);
void check_equal(const char *name, u64 got, u64 want);
void note(const char *name, u64 value);
void power_off(void) __attribute__((noreturn));
void done(void) __attribute__((noreturn));
// The program.
void run(void);

static inline void outb(u16 port, u8 v) { asm volatile("outb %0, %1" ::"a"(v), "Nd"(port) : "memory"); }
static inline void outw(u16 port, u16 v) { asm volatile("outw %0, %1" ::"a"(v), "Nd"(port) : "memory"); }
static inline u8 inb(u16 port) {
    u8 v;
    asm volatile("inb %1, %0" : "=a"(v) : "Nd"(port) : "memory");
    return v;
}

#define REGISTER(name)                                                                                               \
    static inline word read_##name(void) {                                                                           \
        word v;                                                                                                      \
        asm volatile("mov %%" #name ", %0" : "=r"(v)::"memory");                                                     \
        return v;                                                                                                    \
    }                                                                                                                \
    static inline void write_##name(word v) { asm volatile("mov %0, %%" #name ::"r"(v) : "memory"); }
REGISTER(cr0)
REGISTER(cr2)
REGISTER(cr3)
REGISTER(cr4)
REGISTER(dr0)
REGISTER(dr1)
REGISTER(dr6)
REGISTER(dr7)

static inline word read_flags(void) {
    word v;
    asm volatile("pushf; pop %0" : "=r"(v)::"memory");
    return v;
}
static inline u64 rdmsr(u32 msr) {
    u32 low, high;
    asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr) : "memory");
    return (u64)high << 32 | low;
}
static inline void wrmsr(u32 msr, u64 v) {
    asm volatile("wrmsr" ::"c"(msr), "a"((u32)v), "d"((u32)(v >> 32)) : "memory");
}
static inline u64 rdtsc(void) {
    u32 low, high;
    asm volatile("rdtsc" : "=a"(low), "=d"(high)::"memory");
    return (u64)high << 32 | low;
}
struct cpuid {
    u32 eax, ebx, ecx, edx;
};
static inline struct cpuid cpuid(u32 leaf, u32 sub) {
    struct cpuid r;
    asm volatile("cpuid" : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx) : "a"(leaf), "c"(sub));
    return r;
}
static inline void invlpg(const volatile void *p) { asm volatile("invlpg (%0)" ::"r"(p) : "memory"); }
static inline void pause(void) { asm volatile("pause" ::: "memory"); }

void *memcpy(void *to, const void *from, word len);
void *memset(void *to, int byte, word len);
int memcmp(const void *a, const void *b, word len);

enum vector {
    DE = 0, DB = 1, NMI = 2, BP = 3, OF = 4, BR = 5, UD = 6, NM = 7, DF = 8, TS = 10, NP = 11, SS = 12, GP = 13,
    PF = 14, MF = 16, AC = 17, MC = 18, XM = 19,
    NONE = 0xfff,
};

enum {
    FLAG_CF = 1, FLAG_TF = 1 << 8, FLAG_IF = 1 << 9, FLAG_DF = 1 << 10, FLAG_NT = 1 << 14, FLAG_RF = 1 << 16,
    FLAG_VM = 1 << 17, FLAG_AC = 1 << 18,
    CR0_MP = 2, CR0_EM = 4, CR0_TS = 8, CR0_NE = 1 << 5, CR0_WP = 1 << 16, CR0_AM = 1 << 18,
    CR4_VME = 1, CR4_PVI = 2, CR4_TSD = 4, CR4_DE = 8, CR4_PSE = 1 << 4, CR4_PAE = 1 << 5, CR4_PGE = 1 << 7,
    CR4_PCE = 1 << 8, CR4_UMIP = 1 << 11, CR4_FSGSBASE = 1 << 16, CR4_PCIDE = 1 << 17, CR4_OSXSAVE = 1 << 18,
    CR4_SMEP = 1 << 20, CR4_SMAP = 1 << 21,
    PTE_P = 1, PTE_W = 2, PTE_U = 4, PTE_PCD = 16, PTE_A = 32, PTE_D = 64, PTE_PS = 128, PTE_G = 256,
};
#define CR0_PG 0x80000000u
#define PTE_NX (1ull << 63)
