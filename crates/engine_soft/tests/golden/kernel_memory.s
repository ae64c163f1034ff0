# Operands in memory of kernel code: the TLB at once.

case a_load kernel
    mov (rax), rbx
    int3

case a_store kernel
    mov rbx, 8(rax)
    int3

case loads kernel common
    mov (rax), rbx
    mov 8(rbx), ecx
    mov (rsi,rcx,4), edx
    mov 0x100(rip), rax
    mov gs:0x30, rax
    mov gs:(r9), rbx
    movzx -1(rdi), eax
    int3

case stores kernel common
    mov rax, (rbx)
    movl $1, 8(rcx)
    mov r9, (r10)
    lock orb $1, (rsi)
    xchg rax, (rdi)
    lock cmpxchg16b (rsi)
    int3

case misaligned_is_an_error kernel
    movaps (rax), xmm0
    movups 1(rax), xmm1
    movaps xmm1, 16(rax)
    int3
