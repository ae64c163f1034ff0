// Requests of a disk that are under way all the time, beside a computation that keeps its state in registers: whenever the
// machine is saved, both are in the middle of something. What comes of it depends on nothing else, no clock and no
// interrupt, so that the end of a run that was saved and restored can be compared with that of one that was not: all
// registers, all memory, all of the disk. The machine stays halted then, to be looked at.
#include "long.h"

enum { SLOTS = 16, MAGIC = 0x74726976, BLOCK = 2, QUEUE = 16, REQUESTS = 4, ROUNDS = 400, SECTORS = 512, BYTES = 1024 };
enum { DEVICE_ID = 8, FEATURES = 0x20, FEATURES_SELECT = 0x24, QUEUE_SELECT = 0x30, QUEUE_SIZE = 0x38, QUEUE_READY = 0x44,
       QUEUE_NOTIFY = 0x50, STATUS = 0x70, DESCRIPTORS = 0x80, AVAILABLE = 0x90, USED = 0xa0 };
enum { NEXT = 1, FOR_DEVICE = 2, READ = 0, WRITE = 1 };

// A split virtqueue (virtio 1.2 section 2.7).
static struct {
    u64 address;
    u32 len;
    u16 flags, next;
} descriptors[QUEUE] ALIGNED(16);
static volatile struct {
    u16 flags, index, ring[QUEUE];
} available ALIGNED(4);
static volatile struct {
    u16 flags, index;
    struct {
        u32 id, len;
    } ring[QUEUE];
} used ALIGNED(4);
// Of the block device (section 5.2.6).
static struct {
    u32 type, reserved;
    u64 sector;
} requests[REQUESTS];
static volatile u8 status[REQUESTS];
static u64 buffers[REQUESTS][BYTES / 8] ALIGNED(4096);
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
        if (read32(0) == MAGIC && read32(4) == 2 && read32(DEVICE_ID) == BLOCK)
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
    write32(QUEUE_SIZE, QUEUE);
    write64(DESCRIPTORS, descriptors);
    write64(AVAILABLE, &available);
    write64(USED, &used);
    write32(QUEUE_READY, 1);
    write32(STATUS, 1 | 2 | 8 | 4);
    available.flags = 1; // no interrupts
}

static void describe(u32 at, volatile void *to, u32 len, u32 flags, u32 next) {
    descriptors[at].address = (word)to;
    descriptors[at].len = len;
    descriptors[at].flags = flags;
    descriptors[at].next = next;
}

// Request `n` of a round: two are read and two written, each with a quarter of the disk for itself, so that it does not
// matter which is done first.
static void submit(u32 n, u64 random) {
    u32 type = n & 1, at = 3 * n;
    requests[n].type = type;
    requests[n].sector = n * (SECTORS / REQUESTS) + random % (SECTORS / REQUESTS - BYTES / 512);
    status[n] = 0xff;
    describe(at, &requests[n], sizeof requests[n], NEXT, at + 1);
    describe(at + 1, buffers[n], BYTES, NEXT | (type == READ ? FOR_DEVICE : 0), at + 2);
    describe(at + 2, &status[n], 1, FOR_DEVICE, 0);
    available.ring[available.index % QUEUE] = at;
    asm volatile("mfence" ::: "memory");
    available.index++;
    asm volatile("mfence" ::: "memory");
    write32(QUEUE_NOTIFY, 0);
}

static u64 next(u64 random) {
    random ^= random << 13;
    random ^= random >> 7;
    return random ^ random << 17;
}

void run(void) {
    if (!find_device()) {
        check("there is a disk", 0);
        return;
    }
    start_device();
    u64 random = 0x5eed, sum = 0;
    int good = 1;
    // In vector and x87 registers, which nothing else here touches.
    asm volatile("movq %0, %%xmm7; pxor %%xmm3, %%xmm3; fninit; fld1" ::"r"(random));
    for (u32 round = 0; round < ROUNDS; round++) {
        u16 before = used.index;
        for (u32 n = 0; n < REQUESTS; n++) {
            random = next(random);
            submit(n, random >> 7);
        }
        for (u32 i = 0; i < 200; i++) {
            random = next(random);
            sum = (sum << 5 | sum >> 59) ^ random;
            asm volatile("paddq %%xmm7, %%xmm3; fld %%st(0); faddp" ::: "cc");
        }
        // How often it looks leaves no trace.
        while ((u16)(used.index - before) != REQUESTS)
            pause();
        for (u32 n = 0; n < REQUESTS; n++)
            good &= status[n] == 0;
        // What was read is written next, changed.
        for (u32 i = 0; i < BYTES / 8; i++) {
            buffers[1][i] = buffers[0][i] + sum;
            buffers[3][i] = (buffers[2][i] ^ random) + i;
            sum += buffers[0][i] ^ buffers[2][i];
        }
        // A number that doubles becomes infinite before long.
        if (round % 4 == 3)
            asm volatile("fstp %%st(0); fld1" ::: "cc");
    }
    check("every request is answered", good);
    asm volatile("mov %0, %%r12; mov %1, %%r13; 1: cli; hlt; jmp 1b" ::"r"(sum), "r"(random) : "r12", "r13");
}
