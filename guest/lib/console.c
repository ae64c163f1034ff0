// The serial console (16550 at port 0x3f8, by polling), checks, and the ways to end.
#include "guest.h"

static u32 passed, failed;

static void put_char(char c) {
    while (!(inb(0x3fd) & 0x20))
        pause();
    outb(0x3f8, c);
}

void put(const char *text) {
    while (*text)
        put_char(*text++);
}

void put_hex(u64 value) {
    int shift = 60;
    while (shift > 0 && !(value >> shift))
        shift -= 4;
    put("0x");
    for (; shift >= 0; shift -= 4)
        put_char("0123456789abcdef"[value >> shift & 15]);
}

static void put_decimal(u32 value) {
    if (value >= 10)
        put_decimal(value / 10);
    put_char('0' + value % 10);
}

void check(const char *name, int ok) {
    if (ok) {
        passed++;
        put("PASS ");
        put(name);
    } else {
        failed++;
        put("FAIL ");
        put(name);
        put(": is not so");
    }
    put("\n");
}

void check_equal(const char *name, u64 got, u64 want) {
    if (got == want) {
        check(name, 1);
        return;
    }
    failed++;
    put("FAIL ");
    put(name);
    put(": ");
    put_hex(got);
    put(" should be ");
    put_hex(want);
    put("\n");
}

void note(const char *name, u64 value) {
    put("NOTE ");
    put(name);
    put(" ");
    put_hex(value);
    put("\n");
}

// ACPI soft-off on this project's board (SLP_TYP 5) and on another (0), then the keyboard controller's reset.
void power_off(void) {
    asm volatile("cli");
    outw(0x604, 5 << 10 | 1 << 13);
    outw(0x604, 1 << 13);
    outb(0x64, 0xfe);
    for (;;)
        asm volatile("hlt");
}

void done(void) {
    put("DONE ");
    put_decimal(passed);
    put(" passed ");
    put_decimal(failed);
    put(" failed\n");
    power_off();
}

void *memcpy(void *to, const void *from, word len) {
    void *d = to;
    asm volatile("rep movsb" : "+D"(d), "+S"(from), "+c"(len)::"memory");
    return to;
}

void *memset(void *to, int byte, word len) {
    void *d = to;
    asm volatile("rep stosb" : "+D"(d), "+c"(len) : "a"(byte) : "memory");
    return to;
}

int memcmp(const void *a, const void *b, word len) {
    const u8 *x = a, *y = b;
    for (word i = 0; i < len; i++)
        if (x[i] != y[i])
            return x[i] - y[i];
    return 0;
}
