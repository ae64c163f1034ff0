# What kernels do all the time.

case interrupts_off kernel
    cli
    int3

case interrupts_off_with_live_flags kernel
    cmp rax, rbx
    cli
    je 1f
1:  int3

case interrupts_on kernel
    sti
    int3

case interrupts_saved kernel
    pushfq
    cli
    mov (rdi), rax
    popfq
    int3

case selectors kernel
    mov ds, eax
    mov es, rbx
    mov fs, cx
    mov gs, r9
    mov ss, r10w
    mov eax, ds
    int3

case user_pages_opened kernel common
    stac
    int3

case user_pages_closed kernel common
    clac
    int3

case user_pages_are_not_for_users user common
    stac
    int3

case stacks_swapped kernel common
    swapgs
    int3

case frames kernel common
    pushq gs:0x6014
    push 8(rsp)
    push rax
    pop rsp
    int3

case time kernel
    rdtsc
    shl $32, rdx
    or rdx, rax
    rdtscp
    int3

case time_for_users user
    rdtsc
    int3

case control_registers kernel
    mov cr0, rax
    mov cr2, r9
    mov rax, cr3
    int3

case invalidation kernel
    invlpg (rax)
    int3

case msr kernel
    wrmsr
    int3

case bases kernel
    swapgs
    rdfsbase rax
    wrgsbase r9
    int3

case halt kernel
    hlt
    int3
