# What the interpreter's handlers do in the middle of a block.

case strings user
    rep movsb
    rep stosq
    movsl
    lodsb
    repne scasb
    repe cmpsb
    int3

# String instructions leave flags alone, or replace them: those before live on or not.
case strings_between_live_flags user
    cmp rax, rbx
    rep movsb
    je 1f
1:  int3

case fences user
    mfence
    sfence
    pause
    clflush (rax)
    int3

case narrow_addresses user
    mov (eax,ecx,2), edx
    lea (eax), rbx
    push 8(eax)
    movl $1, 0x12345678(eip)
    int3

case other user
    cpuid
    xlat
    enter $32, $0
    rdrand rax
    xabort $1
    int3

case words_that_processors_disagree_about user
    .byte 0x66, 0x63, 0xc1
    int3

case ports kernel
    in dx, al
    out eax, dx
    int3

case between_vectors user
    movaps xmm0, xmm1
    rep movsb
    movaps xmm1, xmm2
    int3
