// Code that others overwrite while it runs, in loops that nothing leads out of: by a device's DMA (of the entropy
// device, for the value does not matter), by a store of another CPU, and by one through an alias. There is no interrupt,
// no serialising instruction, and no page the loop goes to beside its own.
#include "long.h"

enum { SLOTS = 16, MAGIC = 0x74726976, ENTROPY = 4 };
enum { DEVICE_ID = 8, FEATURES = 0x20, FEATURES_SELECT = 0x24, QUEUE_SELECT = 0x30, QUEUE_SIZE = 0x38, QUEUE_READY = 0x44,
       QUEUE_NOTIFY = 0x50, STATUS = 0x70, DESCRIPTORS = 0x80, AVAILABLE = 0x90, USED = 0xa0 };

// A split virtqueue (virtio 1.2 section 2.7).
static struct {
    u64 address;
    u32 len;
    u16 flags, next;
} descriptors[8] ALIGNED(16);
static volatile struct {
    u16 flags, index, ring[8];
} available ALIGNED(4);
static volatile struct {
    u16 flags, index;
    struct {
        u32 id, len;
    } ring[8];
} used ALIGNED(4);
static volatile u8 *device;

static u32 read32(u32 at) { return *(volatile u32 *)(device + at); }
static void write32(u32 at, u32 value) { *(volatile u32 *)(device + at) = value; }
static void write64(u32 at, const volatile void *p) {
    write32(at, (word)p);
    write32(at + 4, (word)p >> 32);
}

static int find_device(void) {
    for (int i = 0; i < SLOTS; i++) {
        device = (u8 *)0xd0000000ull + 0x1000 * i;
        if (read32(0) == MAGIC && read32(4) == 2 && read32(DEVICE_ID) == ENTROPY)
            return 1;
    }
    return 0;
}

static void start_device(void) {
    write32(STATUS, 0);
    write32(STATUS, 1 | 2);
    write32(FEATURES_SELECT, 1);
    write32(FEATURES, 1); // version 1
    write32(STATUS, 1 | 2 | 8);
    write32(QUEUE_SELECT, 0);
    write32(QUEUE_SIZE, 8);
    write64(DESCRIPTORS, descriptors);
    write64(AVAILABLE, &available);
    write64(USED, &used);
    write32(QUEUE_READY, 1);
    write32(STATUS, 1 | 2 | 8 | 4);
    available.flags = 1; // no interrupts
}

// Has the device write `len` bytes at `to`.
static void dma(void *to, u32 len) {
    u16 before = used.index;
    descriptors[0].address = (word)to;
    descriptors[0].len = len;
    descriptors[0].flags = 2; // for the device to write
    available.ring[available.index % 8] = 0;
    asm volatile("mfence" ::: "memory");
    available.index++;
    asm volatile("mfence" ::: "memory");
    write32(QUEUE_NOTIFY, 0);
    WAIT_FOR(used.index != before);
}

static u8 code[4096] ALIGNED(4096);
static volatile struct {
    u64 turns;
    u32 wanted, begun, got;
} shared ALIGNED(4096);

// A loop that ends when the immediate of its first MOV, at offset 4, is no longer `value`; it counts its turns.
//   0: nopl (%rax); mov $value, %eax; incq (%rdi); then `kind`:
static void assemble(int kind, u32 value) {
    static const u8 head[] = {0x0f, 0x1f, 0x00, 0xb8, 0, 0, 0, 0, 0x48, 0xff, 0x07};
    static const u8 own[] = {0x3d, 0, 0, 0, 0, 0x74, 0xee, 0xc3};                // 11: cmp $value, %eax; je 0; ret
    static const u8 away[] = {0xeb, 0x53};                                        // 11: jmp 0x60
    static const u8 back[] = {0x3d, 0, 0, 0, 0, 0x74, 0x99, 0xc3};                // 0x60: cmp; je 0; ret
    static const u8 indirect[] = {0x3d, 0, 0, 0, 0, 0x75, 0x02, 0xff, 0xe6, 0xc3}; // 0x60: cmp; jne 0x69; jmp *%rsi; ret
    static const u8 calls[] = {0xe8, 0x50, 0, 0, 0, 0x74, 0xee, 0xc3};            // 11: call 0x60; je 0; ret
    static const u8 callee[] = {0x3d, 0, 0, 0, 0, 0xc3};                          // 0x60: cmp; ret
    memset(code, 0xcc, sizeof code);
    memcpy(code, head, sizeof head);
    memcpy(code + 4, &value, 4);
    u8 *compare = code + 0x60;
    if (kind == 0) {
        compare = code + 11;
        memcpy(compare, own, sizeof own);
    } else if (kind == 3) {
        memcpy(code + 11, calls, sizeof calls);
        memcpy(compare, callee, sizeof callee);
    } else {
        memcpy(code + 11, away, sizeof away);
        memcpy(compare, kind == 1 ? back : indirect, kind == 1 ? sizeof back : sizeof indirect);
    }
    memcpy(compare + 1, &value, 4);
}

static void other_cpu(u32 number) {
    (void)number;
    for (u32 seen = 0;;) {
        while (shared.wanted == seen)
            pause();
        seen = shared.wanted;
        (void)cpuid(0, 0);
        u32 got;
        word at = (word)code, turns = (word)&shared.turns, out;
        asm volatile("call *%3" : "=a"(got), "=D"(out) : "D"(turns), "r"(at), "S"(at) : "memory", "cc");
        shared.got = got;
        __atomic_store_n(&shared.begun, seen, __ATOMIC_SEQ_CST);
    }
}

static int overwritten(const char *name, int kind, void (*write)(u32 *)) {
    u32 old = 0x5eed0000 + shared.wanted;
    assemble(kind, old);
    shared.turns = 0;
    __atomic_store_n(&shared.wanted, shared.wanted + 1, __ATOMIC_SEQ_CST);
    // Long enough for every engine to think that this is hot.
    WAIT_FOR(shared.turns > 20000);
    write((u32 *)(code + 4));
    WAIT_FOR(shared.begun == shared.wanted);
    int ok = shared.begun == shared.wanted && shared.got != old && shared.got == *(volatile u32 *)(code + 4);
    check(name, ok);
    return shared.begun == shared.wanted;
}

static void by_device(u32 *at) { dma(at, 4); }
static void by_store(u32 *at) { *(volatile u32 *)at = 0x12345678; }
static void by_alias(u32 *at) { *(volatile u32 *)USER_PTR(at) = 0x12345678; }
static void by_string(u32 *at) {
    static const u32 value = 0x04030201;
    const u32 *from = &value;
    // One element, so that no CPU executes half of what is written.
    word count = 1;
    asm volatile("rep movsl" : "+D"(at), "+S"(from), "+c"(count)::"memory");
}

void run(void) {
    static const struct {
        const char *name;
        int kind;
        void (*write)(u32 *);
    } cases[] = {
        {"by DMA: a block that leads to itself", 0, by_device},
        {"by DMA: two blocks, of which it hits one", 1, by_device},
        {"by DMA: back by an indirect jump", 2, by_device},
        {"by DMA: with a call and a return", 3, by_device},
        {"by another CPU: a block that leads to itself", 0, by_store},
        {"by another CPU: two blocks, of which it hits one", 1, by_store},
        {"by another CPU: back by an indirect jump", 2, by_store},
        {"by another CPU: with a call and a return", 3, by_store},
        {"by another CPU through an alias", 1, by_alias},
        {"by another CPU's string instruction", 1, by_string},
        {"by DMA once more, after all that", 0, by_device},
    };
    check_equal("another CPU starts", start_other_cpus(1, other_cpu), 1);
    check("the entropy device is there", find_device());
    start_device();
    for (word i = 0; i < sizeof cases / sizeof *cases; i++)
        if (!overwritten(cases[i].name, cases[i].kind, cases[i].write))
            return; // the other CPU is lost
}
