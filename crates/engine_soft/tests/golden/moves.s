# Moves between registers. RSP lives in R9 and R9 to R11 in memory; all others are where the guest has them.

case at_home user
    mov rax, rbx
    mov eax, edx
    mov cx, di
    mov sil, bpl
    mov al, bh
    mov dh, cl
    mov r8d, r15d
    mov $0x12345678, ecx
    mov $-1, rdx
    movabs $0x123456789abcdef0, rbp
    mov $7, dil
    mov $9, bh
    movzx r12b, eax
    movzx ah, ebx
    movzx si, rdi
    movsx cl, rcx
    movsx r13w, edx
    movslq ebx, r14
    xchg rax, rsi
    xchg dl, bh
    bswap r8
    bswap eax
    cwtl
    cltq
    cltd
    cqto
    xadd rbx, rdx
    cmpxchg rcx, rsi
    int3

case the_stack_pointer user
    mov rsp, rbp
    mov rbp, rsp
    mov esp, eax
    mov sp, ax
    mov spl, al
    add $8, rsp
    sub rax, rsp
    and $-16, rsp
    lea 16(rsp), rsp
    xchg rsp, rax
    cmp rsp, rbx
    cmove rsp, rcx
    int3

case in_memory user
    mov r9, rax
    mov rax, r10
    mov r11, r9
    mov r9d, r10d
    mov $5, r9b
    mov r10w, r11w
    mov $1, r11d
    movzx r9b, eax
    movslq r10d, r11
    xchg r9, r10
    xchg r11, rcx
    bswap r10
    xadd r9, r11
    add r9, r10
    sub $1, r11
    cmovne r9, r10
    cmovne eax, r11d
    mov rsp, r9
    mov r10, rsp
    imul r9, r10
    shl cl, r11
    shld $3, r9, r10
    cmpxchg r9, r10
    int3

# A byte register that needs REX has no place beside AH to DH.
case high_bytes user
    mov ah, bl
    add bh, cl
    cmp dh, al
    mov ah, (rdi)
    mov (rdi), bh
    movzx ch, edx
    setne bh
    test $4, ah
    int3

case addresses user
    lea (rax), rbx
    lea 8(rax), ebx
    lea 8(rax), bx
    lea (rax,rcx,4), rdx
    lea -16(rsp,rax,8), rsi
    lea 0x12345678(,rcx,8), rdi
    lea 0x1000, r8
    lea 0x100(rip), rax
    lea (r9), rax
    lea (r9,r10,2), r11
    lea 5(r11), r11d
    lea 5(r11), r11w
    lea (rsp), r9
    lea (r9), rsp
    lea (rax,rbx), esp
    lea 4(eax), ecx
    int3

case conditions user
    sete al
    seta bh
    setl r9b
    cmovb rax, rbx
    cmovge r10, rcx
    cmovs ecx, r11d
    cmovp dx, si
    int3

case nothing_to_do user
    nop
    nopw 0(rax,rax)
    endbr64
    lfence
    prefetcht0 (rax)
    prefetchw 8(rbx)
    prefetchnta (r9)
    int3
