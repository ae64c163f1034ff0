# Integer arithmetic on registers.

case alu user
    add rbx, rax
    or $0x80, ecx
    adc rdx, rbx
    sbb $1, rsi
    and r12d, edi
    sub $0x1000, r13
    xor eax, eax
    cmp r14, r15
    test rbp, rbp
    test $1, dl
    inc rcx
    dec r8d
    neg rbx
    not rdx
    adc $0, r9
    sbb r10, r11
    inc r11
    int3

case shifts user
    shl $3, rax
    shr $1, ebx
    sar $63, rdx
    shl cl, rsi
    sar cl, r10d
    rol $5, ecx
    ror cl, rdi
    rcl $1, eax
    rcr cl, rbx
    shld $4, rax, rdx
    shrd cl, rbx, rsi
    int3

case products user
    mul rbx
    mul r9
    imul ecx
    imul rdx, rax
    imul $100, rbx, rcx
    imul $3, r10, r11
    mulx rax, rbx, rcx
    adcx rax, rbx
    adox rcx, r9
    int3

case carries user
    clc
    stc
    cmc
    lahf
    sahf
    adc rax, rax
    int3

# Natively where the quotient surely fits.
case a_division user
    divq (rdi)
    idiv rcx
    int3

case divisions user common
    div rbx
    div r9d
    idiv rcx
    idiv r10
    div ecx
    idiv esi
    div cl
    idiv bx
    div rsp
    divq (rdi)
    divl 8(rdi)
    idivq (rsi,rax,8)
    idivl (r9)
    int3

case divisions_between_live_flags user
    cmp rax, rbx
    mov $0, edx
    div rcx
    jc 1f
    int3
1:  int3
