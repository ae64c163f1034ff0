# Vector registers are the host's while translated code runs.

case sse user
    movaps xmm0, xmm1
    addps xmm2, xmm3
    mulsd xmm4, xmm5
    pxor xmm0, xmm0
    pshufd $0x1b, xmm1, xmm2
    cvtsi2sd rax, xmm0
    cvttsd2si xmm0, r9
    movq xmm1, rax
    movd r10d, xmm2
    pmovmskb xmm3, eax
    sqrtsd xmm8, xmm9
    pshufb xmm1, xmm2
    pcmpeqb xmm10, xmm11
    ucomisd xmm0, xmm1
    int3

case sse_in_memory user common
    movups (rax), xmm0
    movaps (rbx), xmm1
    movaps xmm1, (rcx)
    addps (rdx), xmm2
    addsd 8(rsi), xmm3
    movsd (rdi), xmm4
    movss xmm4, (r8)
    movntdq xmm0, (r9)
    pinsrw $1, (rax,rcx), xmm5
    movlps (r12), xmm6
    cvtsi2sdl (r13), xmm7
    lddqu (r14), xmm0
    movq xmm0, (r15)
    int3

case sse_live_flags user
    ucomisd xmm0, xmm1
    movsd (rax), xmm2
    ja 1f
1:  int3

case avx user
    vaddps ymm0, ymm1, ymm2
    vpxor xmm0, xmm0, xmm0
    vmulsd xmm1, xmm2, xmm3
    vfmadd231ps ymm1, ymm2, ymm3
    vpermq $0x4e, ymm1, ymm2
    vextracti128 $1, ymm0, xmm1
    vpbroadcastb xmm0, ymm1
    vpmovmskb ymm1, eax
    vmovq xmm0, r9
    vzeroupper
    vzeroall
    int3

case avx_in_memory user common
    vmovdqu (rax), ymm0
    vmovdqa (rbx), ymm1
    vmovdqa ymm1, (rcx)
    vaddps (rdx), ymm1, ymm2
    vaddps (rsi,rdi), xmm1, xmm2
    vmovntdq ymm0, (r9)
    vpbroadcastd (r8), ymm3
    vmovups 32(rax), ymm4
    vextractf128 $1, ymm0, (r12)
    int3

# What is not the host's to do, or may fault in the middle.
case by_handlers user common
    ldmxcsr (rax)
    stmxcsr (rbx)
    vpgatherdd ymm0, (rax,ymm1,4), ymm2
    vmaskmovps (rax), ymm1, ymm2
    maskmovdqu xmm0, xmm1
    fld1
    fadd st(1), st
    emms
    movq2dq mm0, xmm0
    fxsave (rax)
    xgetbv
    int3

case in_the_kernel kernel
    movups (rax), xmm0
    movups xmm0, (rbx)
    int3

case after_a_jump user
    jmp 1f
    .skip 16, 0xcc
1:  movaps xmm0, xmm1
    int3
