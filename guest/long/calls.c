// Calls and returns that do not pair, stacks at and across the edges of pages, and code at the ends of pages:
// what an engine that predicts returns or keeps the stack's page must not get wrong.
#include "long.h"

static u8 code[3 * 4096] ALIGNED(4096);
static u8 stacks[4 * 4096] ALIGNED(4096);
typedef u64 (*function)(u64);

// Recursion deeper than any stack of predictions, and back.
static __attribute__((noinline)) u64 depth(u64 n) {
    asm volatile("" : "+r"(n));
    u64 below = n ? depth(n - 1) : 0;
    asm volatile("" : "+r"(below));
    return below + 1;
}

static void deep(void) {
    static u8 stack[512 * 1024] ALIGNED(4096);
    u64 got;
    for (u64 n = 3000; n <= 12000; n += 3000) {
        asm volatile("mov %%rsp, %%rbx\n mov %2, %%rsp\n call *%3\n mov %%rbx, %%rsp"
                     : "=a"(got), "+D"(n)
                     : "r"(stack + sizeof stack), "r"(depth)
                     : "rbx", "rcx", "rdx", "rsi", "r8", "r9", "r10", "r11", "memory");
        n = got - 1;
        check_equal("recursion comes back", got % 3000, 1);
    }
}

// A call without a return, many times: the address is popped.
static void popped(void) {
    u64 sum = 0;
    asm volatile("mov $20000, %%ecx\n 1: call 2f\n 2: pop %%rax\n inc %0\n dec %%ecx\n jnz 1b" : "+r"(sum)::"rax", "rcx", "memory");
    check_equal("calls whose address is popped", sum, 20000);
}

// The callee returns somewhere else than it was called from.
static void elsewhere(void) {
    u64 got = 0;
    for (int i = 0; i < 100; i++)
        asm volatile("call 1f\n add $100, %0\n jmp 3f\n 1: lea 2f(%%rip), %%rax\n mov %%rax, (%%rsp)\n ret\n 2: add $1, %0\n 3:"
                     : "+r"(got)::"rax", "memory");
    check_equal("return address overwritten", got, 100);
    got = 0;
    for (int i = 0; i < 100; i++)
        asm volatile("call 1f\n jmp 3f\n 1: call 2f\n add $100, %0\n ret\n 2: add $8, %%rsp\n add $1, %0\n ret\n 3:" : "+r"(got)::"rax", "memory");
    check_equal("two levels left at once", got, 100);
    got = 0;
    for (int i = 0; i < 100; i++)
        asm volatile("lea 1f(%%rip), %%rax\n push %%rax\n ret\n add $100, %0\n 1: add $1, %0" : "+r"(got)::"rax", "memory");
    check_equal("return without a call", got, 100);
    got = 0;
    for (int i = 0; i < 100; i++)
        asm volatile("push $0x55\n push $0x66\n call 1f\n jmp 2f\n 1: add $1, %0\n ret $16\n 2:" : "+r"(got)::"rax", "memory");
    check_equal("return that drops arguments", got, 100);
}

// Status flags survive calls and returns in both directions.
static void flags(void) {
    int ok = 1;
    for (u64 i = 0; i < 300; i++) {
        u64 got;
        asm volatile("cmp $150, %1\n call 1f\n setc %%al\n movzbl %%al, %%eax\n jmp 2f\n"
                     " 1: lea (%%rax), %%rax\n ret\n 2:" : "=a"(got) : "r"(i) : "memory", "cc");
        ok &= got == (i < 150);
        asm volatile("call 1f\n setz %%al\n movzbl %%al, %%eax\n jmp 2f\n 1: cmp $77, %1\n ret\n 2:" : "=a"(got) : "r"(i) : "memory", "cc");
        ok &= got == (i == 77);
        asm volatile("cmp $5, %1\n push %1\n pop %%rcx\n setc %%al\n movzbl %%al, %%eax" : "=a"(got) : "r"(i) : "rcx", "memory", "cc");
        ok &= got == (i < 5);
    }
    check("flags survive calls, returns and the stack", ok);
}

// A call that ends with its page, so that it returns to the next.
static void at_the_end_of_a_page(void) {
    // entry, in the first page: mov %rdi, %rax; call f. Then: add $1, %rax; ret. f, in the third: add $2, %rax; ret.
    static const u8 f[] = {0x48, 0x83, 0xc0, 0x02, 0xc3}, rest[] = {0x48, 0x83, 0xc0, 0x01, 0xc3};
    u8 *entry = code + 4096 - 8;
    int distance = 2 * 4096 + 64 - 4096;
    memcpy(entry, (const u8[]){0x48, 0x89, 0xf8, 0xe8}, 4);
    memcpy(entry + 4, &distance, 4);
    memcpy(code + 4096, rest, sizeof rest);
    memcpy(code + 2 * 4096 + 64, f, sizeof f);
    int ok = 1;
    for (u64 i = 0; i < 200; i++)
        ok &= ((function)entry)(i) == i + 3;
    check("call at the end of a page, to another page", ok);
    // The same within the page: f just before.
    memcpy(entry - 64, f, sizeof f);
    distance = -64 - 8;
    memcpy(entry + 4, &distance, 4);
    ok = 1;
    for (u64 i = 0; i < 200; i++)
        ok &= ((function)entry)(i) == i + 3;
    check("call at the end of a page, within it", ok);
}

// The code a call will return to changes while the callee runs.
static void rewritten(void) {
    // entry: mov %rdi, %rax; call *%rsi; add $imm8, %rax; ret
    static const u8 entry[] = {0x48, 0x89, 0xf8, 0xff, 0xd6, 0x48, 0x83, 0xc0, 0x01, 0xc3};
    memcpy(code, entry, sizeof entry);
    // f: movb %dil, code+8; ret
    u8 *at = code + 4096, *patched = code + 8;
    memcpy(at, (const u8[]){0x48, 0xb9}, 2);
    memcpy(at + 2, &patched, 8);
    memcpy(at + 10, (const u8[]){0x40, 0x88, 0x39, 0xc3}, 4);
    int ok = 1;
    for (u64 i = 0; i < 100; i++) {
        u64 got;
        asm volatile("call *%3" : "=a"(got) : "D"(i), "S"(at), "r"(code) : "rcx", "memory");
        ok &= got == 2 * i;
    }
    check("code rewritten below a call", ok);
}

// Pushes, pops and accesses by the stack pointer where two pages meet, and where the second is missing.
static u64 juggle(u8 *top) {
    u64 got;
    asm volatile("mov %%rsp, %%rbx\n mov %1, %%rsp\n"
                 "push $1\n push $2\n push $3\n call 1f\n"
                 "mov 8(%%rsp), %%rcx\n shl $8, %%rax\n or %%rcx, %%rax\n"
                 "pop %%rcx\n pop %%rdx\n pop %%rsi\n shl $8, %%rax\n or %%rsi, %%rax\n jmp 2f\n"
                 "1: sub $40, %%rsp\n movq $7, (%%rsp)\n movq $9, 32(%%rsp)\n mov (%%rsp), %%rax\n add 32(%%rsp), %%rax\n"
                 "add $40, %%rsp\n ret\n"
                 "2: mov %%rbx, %%rsp"
                 : "=a"(got) : "r"(top) : "rbx", "rcx", "rdx", "rsi", "memory");
    return got;
}

static void edges(void) {
    int ok = 1;
    for (int round = 0; round < 20; round++)
        for (int offset = -128; offset <= 128; offset += 1)
            ok &= juggle(stacks + 2 * 4096 + offset) == 0x100201;
    check("a stack across two pages", ok);
}

static void missing_page(void) {
    static u64 table3[512] ALIGNED(4096), table2[512] ALIGNED(4096), table1[512] ALIGNED(4096);
    pml4[1] = (word)table3 | 3;
    table3[0] = (word)table2 | 3;
    table2[0] = (word)table1 | 3;
    table1[1] = (word)stacks | 3; // the page below is missing
    // The exception needs a stack of its own.
    static u8 fault_stack[0x4000] ALIGNED(16);
    tss.ist[0] = (word)(fault_stack + sizeof fault_stack);
    idt[PF].ist = 1;
    u8 *page = (u8 *)0x8000001000ull;
    for (int i = 0; i < 50; i++) {
        PROBE("mov %0, %%rsp\n push $1\n push $2\n push $3\n mov resume_rsp(%%rip), %%rsp", "b"(page + 16));
        if (trap.vector != PF || trap.cr2 != (word)page - 8) break;
    }
    check_equal("a push below the page, vector", trap.vector, PF);
    check_equal("a push below the page, address", trap.cr2, (word)page - 8);
    check_equal("what was pushed before is there", ((u64 *)stacks)[0], 2);
    // Present again, elsewhere: the page that the stack was in is not remembered for too long.
    int ok = 1;
    for (int i = 0; i < 50; i++) {
        table1[1] = (word)(stacks + (i & 1) * 4096) | 3;
        invlpg(page);
        asm volatile("mov %%rsp, %%rbx\n mov %0, %%rsp\n push %1\n mov %%rbx, %%rsp" ::"r"(page + 4096), "r"((u64)i) : "rbx", "memory");
        ok &= *(u64 *)(stacks + (i & 1) * 4096 + 4088) == (u64)i;
    }
    check("a stack page exchanged", ok);
    // Read only: a push faults, a pop does not.
    table1[1] = (word)stacks | 1;
    invlpg(page);
    ((u64 *)stacks)[3] = 0x1234;
    for (int i = 0; i < 50; i++) {
        u64 got;
        asm volatile("mov %%rsp, %%rbx\n mov %1, %%rsp\n pop %%rax\n mov %%rbx, %%rsp" : "=a"(got) : "r"(page + 24) : "rbx", "memory");
        ok &= got == 0x1234;
        PROBE("mov %0, %%rsp\n push $1\n mov resume_rsp(%%rip), %%rsp", "b"(page + 24));
        ok &= trap.vector == PF;
    }
    check("a stack that can only be read", ok);
}

// A call that finds a bad target where it has stored its return address by the time the target is refused.
static void through_its_own_slot(void) {
    int ok = 1;
    for (int i = 0; i < 50; i++) {
        PROBE7("mov %0, -8(%%rsp)\n 7: call *-8(%%rsp)", "b"(0x8000000000000000ull));
        ok &= trap.vector == GP && trap.frame.rip == probe_rip && trap.frame.rsp == resume_rsp;
    }
    check("a call through the slot of its own return address", ok);
}

// Vector registers across a call of something that needs none, and that an engine may carry out elsewhere.
static void vectors_kept(void) {
    write_cr4(read_cr4() | 3 << 9); // OSFXSR, OSXMMEXCPT
    static u8 image[512] ALIGNED(16);
    int ok = 1;
    for (u64 i = 0; i < 200; i++) {
        u64 got;
        asm volatile("movq %1, %%xmm0\n call 1f\n movq %%xmm0, %0\n jmp 2f\n 1: fxsave %2\n ret\n 2:"
                     : "=r"(got) : "r"(i * 77), "m"(image) : "memory");
        ok &= got == i * 77;
    }
    check("a vector register across a call", ok);
}

// A list whose first element is in two pages, followed by a loop of one block behind another: what an engine checks once
// for both fields of an element does not hold for the first. Long lists come after short ones, which make both blocks equally
// frequent.
static void list_over_pages(void) {
    enum { DISTANCE = 28, LONGEST = 6, ROUNDS = 2000 };
    u8 *first = stacks + 4096 - 8;
    int ok = 1;
    for (u32 round = 0; round < ROUNDS; round++) {
        u32 count = round < ROUNDS / 2 ? 2 : LONGEST;
        for (u32 i = 0; i < count; i++) {
            *(u32 *)(first + i * DISTANCE + 4) = i + 1;
            *(u32 *)(first + i * DISTANCE + 16) = i + 1 < count ? DISTANCE : 0;
        }
        u64 at = (u64)first, sum;
        asm volatile("movl 4(%0), %k1\n movl 16(%0), %%eax\n test %%eax, %%eax\n je 2f\n"
                     "1: add %%rax, %0\n addl 4(%0), %k1\n movl 16(%0), %%eax\n test %%eax, %%eax\n jne 1b\n 2:"
                     : "+d"(at), "=&S"(sum) : : "rax", "memory", "cc");
        ok &= sum == count * (count + 1) / 2 && at == (u64)first + (count - 1) * DISTANCE;
    }
    check("a list that begins in two pages", ok);
}

void run(void) {
    deep();
    list_over_pages();
    vectors_kept();
    through_its_own_slot();
    popped();
    elsewhere();
    flags();
    at_the_end_of_a_page();
    rewritten();
    edges();
    missing_page();
}
