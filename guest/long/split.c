// Locked operations that reach over the end of a cache line, and of a page, by four CPUs: none is lost. Apart from smp.c, for
// hosts may hold back whoever does such a thing, and a KVM that emulates does not do it as one.
#include "long.h"

enum { CPUS = 4, ROUNDS = 200 };
static u8 straddle[8192] ALIGNED(4096);
static volatile u32 arrived;

static void work(void) {
    for (int i = 0; i < ROUNDS; i++) {
        asm volatile("lock incl %0" : "+m"(*(volatile u32 *)(straddle + 62)));
        asm volatile("lock incl %0" : "+m"(*(volatile u32 *)(straddle + 4094)));
    }
    __atomic_fetch_add(&arrived, 1, __ATOMIC_SEQ_CST);
}
static void other_cpu(u32 number) {
    (void)number;
    work();
    for (;;)
        asm volatile("hlt");
}

void run(void) {
    check_equal("three more CPUs start", start_other_cpus(CPUS - 1, other_cpu), CPUS - 1);
    work();
    WAIT_FOR(arrived == CPUS);
    check_equal("all CPUs finish their work", arrived, CPUS);
    check_equal("lock inc across a cache line", *(u32 *)(straddle + 62), CPUS * ROUNDS);
    check_equal("lock inc across a page", *(u32 *)(straddle + 4094), CPUS * ROUNDS);
}
