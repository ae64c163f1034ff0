// Paging in long mode (SDM vol. 3 chapter 4): accessed and dirty bits, page sizes, rights, error codes, what
// INVLPG, CR3 and INVPCID drop.
#include "long.h"

#define WINDOW 0x8000000000ull // PML4 entry 1
#define PHYSICAL 0x8000000ull  // frames of RAM the program plays with: from 128 MiB

static u64 table3[512] ALIGNED(4096), table2[512] ALIGNED(4096), table1[512] ALIGNED(4096);
static u64 other_pml4[512] ALIGNED(4096), other_table3[512] ALIGNED(4096), other_table2[512] ALIGNED(4096),
    other_table1[512] ALIGNED(4096);

static void flush(void) { write_cr3(read_cr3()); }

// Maps page number `n` of the window to frame number `n` with these flags; tables allow everything.
static volatile u64 *map(int n, u64 flags) {
    pml4[1] = (word)table3 | 7;
    table3[0] = (word)table2 | 7;
    table2[0] = (word)table1 | 7;
    table1[n] = (PHYSICAL + n * 4096) | flags;
    flush();
    return (volatile u64 *)(WINDOW + n * 4096);
}

static void accessed_and_dirty(void) {
    volatile u64 *p = map(0, PTE_P | PTE_W);
    check_equal("fresh entry", table1[0] & 0xfff, PTE_P | PTE_W);
    (void)*p;
    check_equal("load sets A", table1[0] & 0xfff, PTE_P | PTE_W | PTE_A);
    check_equal("load sets A in the PDE", table2[0] & PTE_A, PTE_A);
    check_equal("load sets A in the PDPTE", table3[0] & PTE_A, PTE_A);
    check_equal("load sets A in the PML4E", pml4[1] & PTE_A, PTE_A);
    check_equal("no D in the PDE", table2[0] & PTE_D, 0);
    *p = 1;
    check_equal("store after a load sets D", table1[0] & 0xfff, PTE_P | PTE_W | PTE_A | PTE_D);
    table1[0] &= ~(u64)(PTE_A | PTE_D);
    invlpg(p);
    *p = 2;
    check_equal("store sets A and D", table1[0] & 0xfff, PTE_P | PTE_W | PTE_A | PTE_D);
    p = map(1, PTE_P);
    PROBE("movq $1, (%0)", "b"(p));
    expect_page_fault("store to a read-only page", 3, (word)p);
    check_equal("a refused store does not set D", table1[1] & PTE_D, 0);
    p = map(2, PTE_P | PTE_W);
    PROBE("lock cmpxchg %%rax, (%0)", "b"(p));
    expect_none("cmpxchg");
    check_equal("cmpxchg sets D", table1[2] & PTE_D, PTE_D);
    p = map(3, PTE_P | PTE_W);
    map(4, PTE_P);
    PROBE("movq $-1, (%0)", "b"((word)p + 4092));
    expect_page_fault("store across into a read-only page", 3, WINDOW + 4 * 4096);
    check_equal("nothing was stored", *(u32 *)((word)p + 4092), 0);
    p = map(5, PTE_P | PTE_W);
    PROBE("clflush (%0)", "b"(p));
    PROBE("invlpg (%0)", "b"(p));
    PROBE("prefetcht0 (%0)", "b"(WINDOW + 0x100000));
    expect_none("prefetch of an unmapped page");
}

static void rights(void) {
    volatile u64 *p = map(16, PTE_P);
    write_cr0(read_cr0() & ~(u64)CR0_WP);
    PROBE("movq $1, (%0)", "b"(p));
    expect_none("store to a read-only page without WP");
    write_cr0(read_cr0() | CR0_WP);
    PROBE("movq $1, (%0)", "b"(p));
    expect_page_fault("the same again with WP", 3, (word)p);
    p = map(17, PTE_P | PTE_W | PTE_NX);
    *(volatile u8 *)p = 0xc3;
    PROBE("jmp *%0", "b"(p));
    check_equal("fetch from a no-execute page, vector", trap.vector, PF);
    check_equal("fetch from a no-execute page, error", trap.error, 0x11);
    p = map(18, PTE_P | PTE_W);
    *(volatile u8 *)p = 0xc3;
    PROBE("call *%0", "b"(p));
    expect_none("call to an executable page");
    table1[18] |= PTE_NX;
    invlpg(p);
    PROBE("call *%0", "b"(p));
    check_equal("call after NX was set", trap.vector << 8 | trap.error, PF << 8 | 0x11);
    p = map(19, PTE_P | PTE_W | 1ull << 51);
    PROBE("mov (%0), %%rax", "b"(p));
    expect_page_fault("reserved bit, load", 9, (word)p);
    PROBE("mov %%rax, (%0)", "b"(p));
    expect_page_fault("reserved bit, store", 0xb, (word)p);
    wrmsr(0xc0000080, rdmsr(0xc0000080) & ~(1ull << 11));
    p = map(20, PTE_P | PTE_W | PTE_NX);
    PROBE("mov (%0), %%rax", "b"(p));
    expect_page_fault("NX without NXE is reserved", 9, (word)p);
    wrmsr(0xc0000080, rdmsr(0xc0000080) | 1 << 11);
    p = map(21, PTE_P | PTE_W | PTE_U);
    PROBE("mov (%0), %%rax", "b"(p));
    expect_none("supervisor load of a user page");
    *(volatile u8 *)p = 0xc3;
    struct cpuid features = cpuid(7, 0);
    if (features.ebx & 1 << 7) {
        write_cr4(read_cr4() | CR4_SMEP);
        PROBE("call *%0", "b"(p));
        check_equal("supervisor fetch from a user page with SMEP", trap.vector << 8 | trap.error, PF << 8 | 0x11);
        write_cr4(read_cr4() & ~(u64)CR4_SMEP);
        PROBE("call *%0", "b"(p));
        expect_none("the same without");
    }
    if (features.ebx & 1 << 20) {
        write_cr4(read_cr4() | CR4_SMAP);
        PROBE("mov (%0), %%rax", "b"(p));
        expect_page_fault("supervisor load of a user page with SMAP", 1, (word)p);
        PROBE("mov %%rax, (%0)", "b"(p));
        expect_page_fault("supervisor store to a user page with SMAP", 3, (word)p);
        PROBE7("stac\n 7: mov (%0), %%rax\n clac", "b"(p));
        expect_none("the same with AC");
        PROBE("mov (%0), %%rax", "b"(p));
        expect_page_fault("and again without", 1, (word)p);
        write_cr4(read_cr4() & ~(u64)CR4_SMAP);
    }
    table2[0] &= ~(u64)PTE_W;
    flush();
    p = map(22, PTE_P | PTE_W);
    table2[0] &= ~(u64)PTE_W;
    flush();
    PROBE("mov %%rax, (%0)", "b"(p));
    expect_page_fault("read-only in the PDE", 3, (word)p);
    table2[0] |= PTE_W | PTE_NX;
    flush();
    PROBE("call *%0", "b"(p));
    check_equal("no-execute in the PDE", trap.vector << 8 | trap.error, PF << 8 | 0x11);
    table2[0] &= ~PTE_NX;
    flush();
}

static void sizes(void) {
    map(0, PTE_P | PTE_W);
    *(volatile u64 *)(PHYSICAL + 0x1234 * 8) = 0x1111;
    table2[1] = PHYSICAL | PTE_P | PTE_W | PTE_PS;
    flush();
    check_equal("2 MiB page", *(volatile u64 *)(WINDOW + (2 << 20) + 0x1234 * 8), 0x1111);
    check_equal("2 MiB page, A", table2[1] & 0xfff, PTE_P | PTE_W | PTE_PS | PTE_A);
    *(volatile u64 *)(WINDOW + (4 << 20) - 8) = 5;
    check_equal("2 MiB page, D", table2[1] & 0xfff, PTE_P | PTE_W | PTE_PS | PTE_A | PTE_D);
    check_equal("2 MiB page, last word", *(volatile u64 *)(PHYSICAL + (2 << 20) - 8), 5);
    // INVLPG of any address in it drops all of it.
    volatile u64 *first = (u64 *)(WINDOW + (2 << 20)), *last = (u64 *)(WINDOW + (4 << 20) - 4096);
    int ok = 1;
    for (u64 i = 0; i < 40; i++) {
        u64 physical = PHYSICAL + (i & 1) * (2 << 20);
        *(volatile u64 *)physical = 100 + i;
        *(volatile u64 *)(physical + (2 << 20) - 4096) = 200 + i;
        table2[1] = physical | PTE_P | PTE_W | PTE_PS;
        invlpg(first + 0x10000);
        ok &= *first == 100 + i && *last == 200 + i;
        *last = 300 + i;
        ok &= *(volatile u64 *)(physical + (2 << 20) - 4096) == 300 + i;
    }
    check("invlpg drops a 2 MiB page as a whole", ok);
    table2[2] = PHYSICAL | PTE_P | PTE_W | PTE_PS | 1 << 13;
    flush();
    PROBE("mov (%0), %%rax", "b"(WINDOW + (4 << 20)));
    expect_page_fault("2 MiB page, reserved address bit", 9, WINDOW + (4 << 20));
    if (cpuid(0x80000001, 0).edx & 1 << 26) {
        table3[1] = PTE_P | PTE_W | PTE_PS;
        flush();
        check_equal("1 GiB page", *(volatile u64 *)(WINDOW + (1 << 30) + PHYSICAL + 0x1234 * 8), 0x1111);
        check_equal("1 GiB page, A", table3[1] & 0xfff, PTE_P | PTE_W | PTE_PS | PTE_A);
        table3[1] |= 1 << 14;
        flush();
        PROBE("mov (%0), %%rax", "b"(WINDOW + (1 << 30)));
        expect_page_fault("1 GiB page, reserved address bit", 9, WINDOW + (1 << 30));
    }
    pml4[2] = (word)table3 | PTE_P | PTE_W | PTE_PS;
    flush();
    PROBE("mov (%0), %%rax", "b"(2 * WINDOW));
    expect_page_fault("PS in the PML4E", 9, 2 * WINDOW);
    pml4[2] = 0;
    flush();
}

// Two address spaces whose page 8 of the window leads to frames 8 and 9.
static void switches(void) {
    volatile u64 *p = map(8, PTE_P | PTE_W);
    *(volatile u64 *)(PHYSICAL + 8 * 4096) = 0x88;
    *(volatile u64 *)(PHYSICAL + 9 * 4096) = 0x99;
    memcpy(other_pml4, pml4, 4096);
    memcpy(other_table3, table3, 4096);
    memcpy(other_table2, table2, 4096);
    memcpy(other_table1, table1, 4096);
    other_pml4[1] = (word)other_table3 | 7;
    other_table3[0] = (word)other_table2 | 7;
    other_table2[0] = (word)other_table1 | 7;
    other_table1[8] = (PHYSICAL + 9 * 4096) | PTE_P | PTE_W;
    check_equal("first address space", *p, 0x88);
    write_cr3((word)other_pml4);
    check_equal("second address space", *p, 0x99);
    write_cr3((word)pml4);
    check_equal("first again", *p, 0x88);
    // INVLPG.
    table1[8] = (PHYSICAL + 9 * 4096) | PTE_P | PTE_W;
    invlpg(p);
    check_equal("invlpg", *p, 0x99);
    table1[8] = 0;
    invlpg(p);
    PROBE("mov (%0), %%rax", "b"(p));
    expect_page_fault("invlpg of an entry no longer present", 0, (word)p);
    table1[8] = (PHYSICAL + 8 * 4096) | PTE_P | PTE_W;
    check_equal("an entry becomes present without invlpg", *p, 0x88);
    // Global pages survive MOV to CR3 and not a change of CR4.PGE. A processor may drop them any time.
    write_cr4(read_cr4() | CR4_PGE);
    table1[8] |= PTE_G;
    flush();
    (void)*p;
    table1[8] = (PHYSICAL + 9 * 4096) | PTE_P | PTE_W | PTE_G;
    flush();
    note("global page after mov to cr3 (0x88 kept, 0x99 dropped)", *p);
    write_cr4(read_cr4() & ~(u64)CR4_PGE);
    check_equal("global page after clearing PGE", *p, 0x99);
    write_cr4(read_cr4() | CR4_PGE);
    (void)*p;
    table1[8] = (PHYSICAL + 8 * 4096) | PTE_P | PTE_W | PTE_G;
    invlpg(p);
    check_equal("invlpg drops a global page", *p, 0x88);
    write_cr4(read_cr4() & ~(u64)CR4_PGE);
    table1[8] = (PHYSICAL + 8 * 4096) | PTE_P | PTE_W;
    flush();
}

struct descriptor {
    u64 pcid, address;
};
static void pcid(void) {
    if (!(cpuid(1, 0).ecx & 1 << 17))
        return;
    volatile u64 *p = (volatile u64 *)(WINDOW + 8 * 4096);
    struct descriptor d = {2, (word)p};
    PROBE("mov %0, %%cr3", "b"((word)pml4 | 5));
    expect_none("PCD-like bits in cr3 without PCIDE");
    PROBE("mov %0, %%cr4", "b"(read_cr4() | CR4_PCIDE));
    note("PCIDE with low bits in cr3, vector (0xd)", trap.vector);
    write_cr4(read_cr4() & ~(u64)CR4_PCIDE);
    write_cr3((word)pml4);
    write_cr4(read_cr4() | CR4_PCIDE);
    write_cr3((word)pml4 | 1);
    check_equal("pcid 1", *p, 0x88);
    write_cr3((word)other_pml4 | 2);
    check_equal("pcid 2", *p, 0x99);
    write_cr3((word)pml4 | 1 | 1ull << 63);
    check_equal("pcid 1 without a flush", *p, 0x88);
    write_cr3((word)other_pml4 | 2 | 1ull << 63);
    check_equal("pcid 2 without a flush", *p, 0x99);
    check_equal("cr3 reads back without bit 63", read_cr3(), (word)other_pml4 | 2);
    if (cpuid(7, 0).ebx & 1 << 10) {
        other_table1[8] = (PHYSICAL + 8 * 4096) | PTE_P | PTE_W;
        asm volatile("invpcid %0, %1" ::"m"(d), "r"(0ull) : "memory");
        check_equal("invpcid of one address", *p, 0x88);
        other_table1[8] = (PHYSICAL + 9 * 4096) | PTE_P | PTE_W;
        asm volatile("invpcid %0, %1" ::"m"(d), "r"(1ull) : "memory");
        check_equal("invpcid of one context", *p, 0x99);
        other_table1[8] = (PHYSICAL + 8 * 4096) | PTE_P | PTE_W;
        asm volatile("invpcid %0, %1" ::"m"(d), "r"(3ull) : "memory");
        check_equal("invpcid of all but global", *p, 0x88);
        other_table1[8] = (PHYSICAL + 9 * 4096) | PTE_P | PTE_W;
        asm volatile("invpcid %0, %1" ::"m"(d), "r"(2ull) : "memory");
        check_equal("invpcid of all", *p, 0x99);
        PROBE("invpcid (%0), %1", "b"(&d), "S"(4ull));
        expect("invpcid of a type that is not there", GP, 0);
        d.pcid = 0x1000;
        PROBE("invpcid (%0), %1", "b"(&d), "S"(1ull));
        expect("invpcid with reserved bits", GP, 0);
    }
    PROBE("mov %0, %%cr4", "b"(read_cr4() & ~(u64)CR4_PAE & ~(u64)CR4_PCIDE));
    expect("no PAE in long mode", GP, 0);
    write_cr3((word)pml4);
    write_cr4(read_cr4() & ~(u64)CR4_PCIDE);
}

void run(void) {
    accessed_and_dirty();
    rights();
    sizes();
    switches();
    pcid();
}
