# Instructions counted, for the account of -v.

case plain user count
    add rax, rbx
    mov (rcx), rdx
    cmp rax, rdx
    je 1f
1:  int3

case with_live_flags user count
    adc rax, rbx
    int3

case with_vectors user count
    movaps xmm0, xmm1
    int3
