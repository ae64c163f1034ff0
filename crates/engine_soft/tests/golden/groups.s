# Accesses of a block that are close together share one check.

case one_base user variants
    mov (rax), rbx
    mov 8(rax), rcx
    mov 16(rax), edx
    int3

case loads_and_stores user
    mov (rax), rbx
    mov rbx, 8(rax)
    addl $1, 16(rax)
    int3

case two_bases user common
    mov (rsi), rax
    mov rax, (rdi)
    mov 8(rsi), rax
    mov rax, 8(rdi)
    int3

case too_far_apart user common
    mov (rax), rbx
    mov 8(rax), rcx
    mov 1024(rax), rdx
    mov 1032(rax), rdx
    int3

case a_base_that_moves user common
    mov (rsi), rax
    add $8, rsi
    mov (rsi), rbx
    lea 8(rsi), rsi
    mov (rsi), rcx
    inc rsi
    mov (rsi), dl
    sub $16, rsi
    mov (rsi), rdx
    int3

case a_base_that_is_replaced user common
    mov (rax), rbx
    mov 8(rax), rax
    mov (rax), rcx
    mov 8(rax), rdx
    int3

case a_base_that_moves_by_a_register user common
    mov (rax), rbx
    mov 8(rax), rcx
    add rdx, rax
    mov (rax), rbx
    mov 8(rax), rcx
    int3

case ended_by_a_handler user common
    mov (rax), rbx
    mov 8(rax), rcx
    cpuid
    mov (rax), rbx
    mov 8(rax), rcx
    int3

case not_ended_by_what_may_call_one user common
    mov (rax), rbx
    mov (rcx,rdx), rsi
    mov 8(rax), rcx
    int3

case bases_in_memory_have_none user common
    mov (r9), rax
    mov 8(r9), rbx
    int3

case more_than_there_are_places_for user common
    mov (rax), ebx
    mov 4(rax), ebx
    mov (rcx), ebx
    mov 4(rcx), ebx
    mov (rdx), ebx
    mov 4(rdx), ebx
    mov (rsi), ebx
    mov 4(rsi), ebx
    mov (rdi), ebx
    mov 4(rdi), ebx
    mov (rbp), ebx
    mov 4(rbp), ebx
    mov (r8), ebx
    mov 4(r8), ebx
    mov (r12), ebx
    mov 4(r12), ebx
    mov (r13), ebx
    mov 4(r13), ebx
    int3

case live_flags user
    cmp rbx, rcx
    mov (rax), rdx
    mov 8(rax), rsi
    jne 1f
    xor eax, eax
1:  int3

case alignment user common
    movaps (rax), xmm0
    movaps xmm0, 16(rax)
    int3

case in_the_kernel kernel variants
    mov (rax), rbx
    mov rbx, 8(rax)
    int3

case the_stack_in_the_kernel kernel
    push rbp
    mov rsp, rbp
    push rbx
    mov 16(rbp), rax
    pop rbx
    leave
    ret
