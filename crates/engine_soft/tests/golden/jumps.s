# Jumps, and other ways a block ends that are neither a call nor a return.

case jump_ahead user
    jmp 1f
    .skip 300, 0xcc
1:  ret

# Loops look at whether somebody wants attention.
case jump_back user at=0x40
1:  nop
    .skip 63, 0x90
    jmp 1b

case jump_to_another_page user
    jmp . + 0x2345

case conditional user
    test rax, rax
    je 1f
    .skip 16, 0x90
1:  ret

case conditional_back user
1:  dec rcx
    jne 1b
    ret

case conditional_to_another_page user
    cmp rax, rbx
    ja . + 0x4000
    ret

case conditional_that_falls_into_another_page user at=0xffb
    .skip 0xffb, 0x90
    cmp rax, rbx
    je . - 0x40

case conditional_with_flags_in_memory user
    cmp rax, rbx
    mov (rcx), rdx
    jl 1f
    jg 1f
1:  ret

case counted_loop user
1:  loop 1b
    jrcxz 1b
    ret

case jump_to_a_register user
    jmp *rax

case jump_to_a_register_in_memory user
    jmp *r9

case jump_through_memory user
    jmp *8(rax,rcx,8)

case jump_through_a_table user
    cmp $7, eax
    jmp *0x200(,rax,8)

case end_of_a_page user at=0xffd
    .skip 0xffd, 0x90
    mov rax, rbx

case too_long user
    .rept 60
    inc eax
    .endr
    ret

case system_call user
    syscall

case far_return kernel
    iretq

case trap user
    int3

# In two pages: entered through the jump table, and only while both have the code.
case instruction_in_two_pages user at=0xffd
    .skip 0xffd, 0x90
    .byte 0xb8, 0x78, 0x56

case falls_into_an_instruction_in_two_pages user at=0xff8
    .byte 0x34, 0x12
    .skip 0xff6, 0x90
    add ecx, eax
    jne 1f
    mov edx, ecx
1:  .byte 0xb8, 0x12

case behind_an_instruction_in_two_pages user
    .byte 0x78, 0x56, 0x34
    int3
