// A program of 32 bits, without a library: each line it writes is one kind of work and what came of it. Built and run by
// `tests/legacy_programs.rs`, on the host and in machines, which must say the same.
typedef unsigned u32;
typedef unsigned long long u64;
#define NOINLINE __attribute__((noinline))

static int call(int number, long a, long b, long c) {
    int result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c) : "memory");
    return result;
}

static void say(const char *what, u32 value) {
    char line[64];
    int end = 0;
    for (; *what; what++)
        line[end++] = *what;
    line[end++] = ' ';
    for (int shift = 28; shift >= 0; shift -= 4)
        line[end++] = "0123456789abcdef"[value >> shift & 15];
    line[end++] = '\n';
    call(4, 1, (long)line, end);
}

// Loops, loads and stores, calls and returns, 64-bit sums of 32-bit halves.
static unsigned char sieve[1 << 16];
static u32 primes(void) {
    u32 count = 0;
    for (u32 i = 0; i < sizeof sieve; i++)
        sieve[i] = 1;
    for (u32 i = 2; i < sizeof sieve; i++)
        if (sieve[i]) {
            count++;
            for (u32 j = i * 2; j < sizeof sieve; j += i)
                sieve[j] = 0;
        }
    return count;
}
static NOINLINE u32 fibonacci(u32 n) { return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2); }
static u32 wide(void) {
    u64 state = 1;
    for (int i = 0; i < 100000; i++)
        state = state * 6364136223846793005ull + 1442695040888963407ull + (u32)(state >> 40) / 1003;
    return state >> 32;
}

// The x87 stack, its exceptions' flags and FNINIT.
static u32 floats(void) {
    static double left[24][24], right[24][24];
    double sum = 0;
    u32 control = 0;
    unsigned short status;
    for (int i = 0; i < 24; i++)
        for (int j = 0; j < 24; j++)
            left[i][j] = i + j / 3.0, right[i][j] = i - j / 7.0;
    for (int i = 0; i < 24; i++)
        for (int j = 0; j < 24; j++)
            for (int k = 0; k < 24; k++)
                sum += left[i][k] * right[k][j];
    __asm__ volatile("fninit; fldpi; fldl2e; fmulp; fldz; fdivrp; fnstsw %0; fnstcw %1; fninit"
                     : "=m"(status), "=m"(control));
    union { double d; u32 half[2]; } both = {sum};
    return both.half[0] ^ both.half[1] ^ status << 4 ^ control;
}

// MMX, which shares the x87 registers.
static u32 packed(void) {
    static const unsigned short a[4] = {1, 0x7fff, 0x8000, 0xffff}, b[4] = {3, 5, 0x8001, 2};
    unsigned short sums[4];
    u32 pairs;
    __asm__ volatile("movq %2, %%mm0; movq %%mm0, %%mm1; paddsw %3, %%mm0; pmaddwd %3, %%mm1; movq %%mm0, %0; movd %%mm1, %1; emms"
                     : "=m"(sums), "=r"(pairs)
                     : "m"(a), "m"(b));
    return pairs ^ sums[0] ^ sums[1] << 4 ^ sums[2] << 8 ^ sums[3] << 12;
}

// Repeated string instructions, upwards and downwards.
static u32 strings(void) {
    static char from[20000], to[20000];
    u32 found, sum = 0;
    for (u32 i = 0; i < sizeof from; i++)
        from[i] = i * 7;
    void *source = from, *place = to;
    u32 count = sizeof from / 4;
    __asm__ volatile("rep movsl" : "+S"(source), "+D"(place), "+c"(count)::"memory");
    source = from + 4999, place = to + 12000, count = 5000;
    __asm__ volatile("std; rep movsb; cld" : "+S"(source), "+D"(place), "+c"(count)::"memory");
    place = to + 100, count = 77;
    __asm__ volatile("rep stosl" : "+D"(place), "+c"(count) : "a"(0x5aa5c33c) : "memory");
    place = to + 500, found = sizeof to - 500;
    __asm__ volatile("repne scasb" : "+D"(place), "+c"(found) : "a"(0x83) : "memory", "cc");
    for (u32 i = 0; i < sizeof to; i++)
        sum = sum * 31 + (unsigned char)to[i];
    return sum ^ found;
}

// Instructions that 64-bit code has not, and flags through the stack.
static u32 legacy(void) {
    u32 ascii, flags, kept, pushed = 0xbeef;
    __asm__ volatile("mov $0x0938, %%eax; add $0x0605, %%ax; aaa; aad; add $1, %%al; das; daa; pushf; pop %1; mov %%eax, %0"
                     : "=r"(ascii), "=r"(flags)::"eax", "cc");
    // From flags that all processors agree about: DAA leaves OF undefined.
    __asm__ volatile("cmp %%eax, %%eax; pushf; pop %%eax; xor $0x200ad5, %%eax; push %%eax; popf; pushf; pop %0; xor $0x200ad5, %%eax; push %%eax; popf"
                     : "=r"(kept)::"eax", "cc");
    __asm__ volatile("pusha; xor %%edi, %%edi; popa" : "+D"(pushed)::"cc", "memory");
    __asm__ volatile("mov $3, %%ecx; xor %%eax, %%eax; 1: add %%ecx, %%eax; loop 1b; into; inc %%eax; jecxz 2f; ud2; 2:"
                     ::: "eax", "ecx", "cc");
    return ascii ^ pushed ^ (flags & 0xd5) << 8 ^ (kept & 0xad5) << 16;
}

// A thread's segment: its base and its limit are checked by the processor.
static u32 segment(void) {
    static u32 area[16] = {1, 2, 3, 0xfeed};
    struct { u32 entry, base, limit, flags; } wanted = {-1u, (u32)area, 15, 1 | 1 << 6};
    if (call(243, (long)&wanted, 0, 0) < 0)
        return 0;
    u32 loaded, size;
    __asm__ volatile("mov %2, %%gs; mov %%gs:12, %0; lsl %2, %1" : "=r"(loaded), "=r"(size) : "r"(wanted.entry * 8 + 3));
    return loaded << 8 ^ size;
}

// Code that is written and changed by itself.
static u32 changed(void) {
    long code = call(90, (long)(u32[]){0, 4096, 7, 0x22, -1u, 0}, 0, 0);
    volatile unsigned char *byte = (unsigned char *)code;
    u32 sum = 0;
    byte[0] = 0xb8, byte[2] = byte[3] = byte[4] = 0, byte[5] = 0xc3; // mov $imm, %eax; ret
    for (u32 i = 0; i < 300; i++) {
        byte[1] = i;
        sum += ((u32(*)(void))code)();
    }
    return sum;
}

void _start(void) {
    say("primes", primes());
    say("fibonacci", fibonacci(22));
    say("wide", wide());
    say("floats", floats());
    say("packed", packed());
    say("strings", strings());
    say("legacy", legacy());
    say("segment", segment());
    say("changed", changed());
    for (int i = 0; i < 2000; i++)
        call(20, 0, 0, 0);
    call(1, 7, 0, 0);
}
