// Self-modifying code (SDM vol. 3 section 12.1.3): a store to code is seen by the next instruction fetched from
// the same linear address, and by any alias after a serialising instruction.
#include "long.h"

static u8 code[3 * 4096] ALIGNED(4096);
typedef u32 (*function)(void);

// mov $imm, %eax; ret
static void assemble(u8 *at, u32 value) {
    at[0] = 0xb8;
    memcpy(at + 1, &value, 4);
    at[5] = 0xc3;
}

static void between_calls(void) {
    int ok = 1;
    for (u32 i = 0; i < 200; i++) {
        assemble(code, i * 77);
        ok &= ((function)code)() == i * 77;
    }
    check("code rewritten between calls", ok);
    ok = 1;
    for (u32 i = 0; i < 100; i++) {
        *(volatile u32 *)(code + 1) = i;
        ok &= ((function)code)() == i;
    }
    check("an immediate patched between calls", ok);
}

static void in_one_block(void) {
    u32 got;
    // The store changes the immediate of the instruction right behind it.
    asm volatile("movl $0x12345678, 1f+1(%%rip)\n 1: mov $0x11111111, %%eax" : "=a"(got)::"memory");
    check_equal("next instruction, first time", got, 0x12345678);
    u32 sum = 0;
    for (u32 i = 0; i < 50; i++) {
        asm volatile("movl %1, 1f+1(%%rip)\n 1: mov $0x11111111, %%eax" : "=a"(got) : "r"(i) : "memory");
        sum += got;
    }
    check_equal("next instruction, in a loop", sum, 49 * 50 / 2);
    asm volatile("movb $0x90, 1f(%%rip)\n movb $0x90, 1f+1(%%rip)\n xor %%eax, %%eax\n nop\n nop\n 1: jmp 2f\n inc %%eax\n 2:"
                 : "=a"(got)::"memory");
    check_equal("a jump later in the block becomes two nops", got, 1);
    // Backwards: a loop patches its own first instruction.
    asm volatile("mov $3, %%ecx\n xor %%eax, %%eax\n 1: add $1, %%eax\n incb 1b+2(%%rip)\n dec %%ecx\n jnz 1b\n movb $1, 1b+2(%%rip)"
                 : "=a"(got)::"rcx", "memory");
    check_equal("a loop patches itself", got, 1 + 2 + 3);
    // By a string instruction that runs over itself is undefined; over what follows it is not.
    static const u8 replacement[5] = {0xb8, 0x44, 0x33, 0x22, 0x11};
    asm volatile("lea 1f(%%rip), %%rdi\n mov $5, %%ecx\n rep movsb\n 1: mov $0, %%eax" : "=a"(got) : "S"(replacement) : "rdi", "rcx", "memory");
    check_equal("rep movsb over the next instruction", got, 0x11223344);
    asm volatile("lea 1f+1(%%rip), %%rdi\n mov $0x5a5a5a5a, %%eax\n stosl\n 1: mov $0, %%eax" : "=a"(got)::"rdi", "memory");
    check_equal("stos over the next instruction", got, 0x5a5a5a5a);
    asm volatile("mov $0x77, %%eax\n xchg %%eax, 1f+1(%%rip)\n 1: mov $0, %%eax" : "=a"(got)::"memory");
    check_equal("xchg over the next instruction", got, 0x77);
    u64 saved = 0;
    asm volatile("mov %%rsp, %1\n lea 1f+9(%%rip), %%rsp\n mov $0x99, %%eax\n push %%rax\n 1: mov $0, %%eax\n .fill 4, 1, 0x90\n mov %1, %%rsp"
                 : "=a"(got), "+r"(saved)::"memory");
    check_equal("push over the next instruction", got, 0x99);
}

static void across_pages(void) {
    u8 *edge = code + 4096 - 3;
    assemble(edge, 0x01020304);
    check_equal("instruction across two pages", ((function)edge)(), 0x01020304);
    code[4096] = 0x55; // third byte of the immediate
    check_equal("its second half patched", ((function)edge)(), 0x01550304);
    code[4095] = 0x66; // second byte
    check_equal("its first half patched", ((function)edge)(), 0x01556604);
    assemble(code + 4096 + 64, 7);
    check_equal("function in the second page", ((function)(code + 4096 + 64))(), 7);
    assemble(code + 8192, 8);
    memcpy(code + 4096, code + 8192, 6);
    check_equal("page copied over", ((function)(code + 4096))(), 8);
    // One store across both pages.
    assemble(edge, 0);
    ((function)edge)();
    *(volatile u32 *)(edge + 1) = 0xa1b2c3d4;
    check_equal("one store across both pages", ((function)edge)(), 0xa1b2c3d4);
}

static void aliases(void) {
    u8 *alias = USER_PTR(code); // user page, no SMEP: executable and writable for the supervisor too
    assemble(code, 1);
    check_equal("through the code's own address", ((function)code)(), 1);
    check_equal("through the alias", ((function)alias)(), 1);
    assemble(alias, 2);
    (void)cpuid(0, 0);
    check_equal("stored through the alias", ((function)code)(), 2);
    assemble(code, 3);
    (void)cpuid(0, 0);
    check_equal("run through the alias", ((function)alias)(), 3);
    int ok = 1;
    for (u32 i = 0; i < 100; i++) {
        *(volatile u32 *)(alias + 1) = i;
        (void)cpuid(0, 0);
        ok &= ((function)code)() == i;
    }
    check("patched through the alias in a loop", ok);
}

// The page under a linear address is exchanged: same address, other code.
static void remapped(void) {
    static u64 table3[512] ALIGNED(4096), table2[512] ALIGNED(4096), table1[512] ALIGNED(4096);
    pml4[1] = (word)table3 | 3;
    table3[0] = (word)table2 | 3;
    table2[0] = (word)table1 | 3;
    function f = (function)0x8000000000ull;
    assemble(code, 10);
    assemble(code + 4096, 11);
    int ok = 1;
    for (u32 i = 0; i < 20; i++) {
        table1[0] = ((word)code + (i & 1) * 4096) | 3;
        invlpg(f);
        ok &= f() == 10 + (i & 1);
    }
    check("code page exchanged under an address", ok);
    // An instruction across two pages, of which the second is exchanged.
    assemble(code + 4093, 0x00112233);
    memcpy(code + 8192, code + 4096, 16);
    code[8192] = 0x77;
    table1[0] = (word)code | 3;
    table1[1] = (word)(code + 4096) | 3;
    write_cr3(read_cr3());
    f = (function)0x8000000ffdull;
    check_equal("across two pages", f(), 0x00112233);
    table1[1] = (word)(code + 8192) | 3;
    invlpg((void *)0x8000001000ull);
    check_equal("second page exchanged", f(), 0x00772233);
    // The same in turn, reached from an instruction before it in its own page.
    function g = (function)0x8000000ffcull;
    code[4092] = 0x90;
    ok = 1;
    for (u32 i = 0; i < 100; i++) {
        table1[1] = ((word)code + (i & 1 ? 8192 : 4096)) | 3;
        invlpg((void *)0x8000001000ull);
        ok &= g() == (i & 1 ? 0x00772233 : 0x00112233);
    }
    check("second page exchanged in turn", ok);
    ok = 1;
    for (u32 i = 0; i < 100; i++) {
        code[8192] = i;
        ok &= g() == (0x00002233 | i << 16);
    }
    check("second page patched in turn", ok);
    ok = 1;
    for (u32 i = 0; i < 100; i++) {
        code[4094] = i;
        ok &= g() == (0x00632200 | i);
    }
    check("first page patched in turn", ok);
    code[4094] = 0x33;
    table1[1] = 0;
    invlpg((void *)0x8000001000ull);
    PROBE("call *%0", "b"(f));
    check_equal("second page taken away, vector", trap.vector, PF);
    check_equal("second page taken away, cr2", trap.cr2, 0x8000001000ull);
    check_equal("second page taken away, rip", trap.frame.rip, (word)f);
}

void run(void) {
    between_calls();
    in_one_block();
    across_pages();
    aliases();
    remapped();
}
