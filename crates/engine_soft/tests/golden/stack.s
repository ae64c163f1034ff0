# The stack, whose page is kept beside the TLB for all blocks.

case prologue_and_epilogue user variants
    push rbp
    mov rsp, rbp
    push rbx
    push r12
    sub $24, rsp
    mov rdi, 8(rsp)
    mov 8(rsp), rax
    add $24, rsp
    pop r12
    pop rbx
    pop rbp
    ret

case pushes user common
    push rax
    push r9
    push rsp
    push $5
    push $0x12345678
    push $-1
    pushq (rax)
    pushw ax
    pushq fs
    int3

case pops user common
    pop rax
    pop r10
    pop rsp
    popq (rax)
    popw ax
    int3

case leave_alone user
    leave
    int3

case a_stack_that_is_replaced user
    push rax
    mov rbx, rsp
    push rax
    int3

case a_deep_frame user
    push rax
    sub $0x1000, rsp
    movq $0, (rsp)
    push rbx
    int3

case flags_on_it kernel
    pushfq
    pop rax
    pushfq
    popfq
    int3

case flags_on_it_that_were_just_made kernel
    cmp rax, rbx
    pushfq
    pop rcx
    int3

case live_flags user
    cmp rax, rbx
    push rcx
    pop rdx
    je 1f
1:  int3
