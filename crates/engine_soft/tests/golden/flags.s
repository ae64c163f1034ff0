# Address checks destroy EFLAGS, so live flags are saved before, and loaded again where they are needed.

case dead user
    mov (rax), rbx
    cmp rbx, rcx
    int3

case live_across_a_load user
    cmp rbx, rcx
    mov (rax), rdx
    jne 1f
    xor eax, eax
1:  int3

case live_across_two_loads user
    cmp rbx, rcx
    mov (rax), rdx
    mov (rsi), rdi
    sete bl
    xor eax, eax
    int3

case live_before_the_block user
    mov (rax), rdx
    adc rdx, rbx
    int3

case live_and_read_first user
    adc rdx, rbx
    mov (rax), rdx
    int3

case live_but_not_in_the_way user
    mov rax, rbx
    lea (rcx,rdx), rsi
    jc 1f
1:  int3

# INC keeps CF: the carry of a long addition lives through the loop.
case long_addition user
1:  mov (rsi,rcx,8), rax
    adc rax, (rdi,rcx,8)
    lea 1(rcx), rcx
    dec rdx
    jnz 1b
    int3

case partly_replaced_by_an_operand_in_memory user
    add rax, rbx
    incl (rdi)
    jc 1f
1:  int3

case shift_that_may_not_be_one user
    cmp rax, rbx
    shl cl, rdx
    je 1f
1:  int3

case live_at_a_return user
    cmp rax, rbx
    ret

# The successor overwrites them all.
case dead_in_the_successor user
    add rax, rbx
    jmp 1f
    .skip 64, 0xcc
1:  cmp rax, rdx
    je 2f
2:  int3

# One of two successors reads them.
case live_in_one_successor user
    cmp rax, rbx
    je 1f
    mov (rcx), rdx
    xor eax, eax
    int3
1:  setc al
    cmp rax, rbx
    int3

case dead_across_a_page user at=0xff8
    .skip 0xff8, 0x90
    add rax, rbx
    jmp . + 0x100

case all_kept user exact
    add rax, rbx
    mov (rcx), rdx
    cmp rax, rdx
    mov (rsi), rdi
    cmp rdi, rax
    je 1f
1:  int3

case kernel_code_too kernel
    test rax, rax
    mov (rbx), rcx
    mov rcx, (rdx)
    jne 1f
1:  int3
