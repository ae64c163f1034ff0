# The x87 is the guest's while blocks that need it run; each instruction notes where it is.

case x87 user
    fld1
    fldpi
    faddp st, st(1)
    fxch st(2)
    fmul st(1), st
    fsqrt
    fchs
    fnstsw ax
    sahf
    fcomip st(1), st
    fwait
    fnop
    int3

case x87_in_memory user common
    fldl (rax)
    fadds 4(rbx,rcx,4)
    fildll -8(rbp)
    fistpl 8(rsp)
    fstpt (r9)
    fldt (r10)
    fstps fs:(0)
    fnstcw (rdi)
    fnstsw (rsi)
    int3

case x87_control user
    fldcw (rsp)
    fnstcw 2(rsp)
    int3

case x87_live_flags user
    fldl (rax)
    fcomi st(1), st
    fstpl 8(rax)
    jb 1f
1:  int3

case x87_moves user
    fcmovb st(1), st
    fcmovne st(2), st
    fcmovu st(3), st
    fdivrp st, st(1)
    int3

# By the interpreter's handler: what stores or loads more than registers, and what MMX does.
case x87_handlers user common
    fninit
    fnclex
    fnstenv (rax)
    fldenv (rax)
    fnsave (rax)
    frstor (rax)
    emms
    movq (rbx), mm0
    paddw mm1, mm0
    int3

case x87_and_sse user common
    fldl (rax)
    movsd xmm1, xmm0
    addsd 8(rax), xmm0
    fstpl (rbx)
    int3
