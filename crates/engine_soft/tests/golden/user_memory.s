# Operands in memory of user code: the page a base last led to is tried before the TLB.

case a_load user
    mov (rax), rbx
    int3

case a_store user
    mov rbx, 8(rax)
    int3

case an_address_of_more_parts user
    mov (rax,rcx,2), rbx
    int3

case an_alignment user
    lock cmpxchg16b (rsi)
    int3

case loads user common
    mov (rax), rax
    mov 8(rbx), ecx
    mov -1(rdi), dl
    movzx (rsi), eax
    movswl 2(r8), ebx
    movslq (r12), r13
    add (r14), rdx
    cmp 0x1000(r15), rcx
    xor (rbp), eax
    int3

case stores user common
    mov rax, (rbx)
    mov ecx, 8(rdi)
    mov dl, -1(rsi)
    movl $5, (r8)
    movq $-1, (r12)
    movb $1, (r13)
    movnti rax, (r14)
    sete (rdx)
    int3

case loads_and_stores user common
    addq $1, (rax)
    incl (rbx)
    sub rcx, 8(rsi)
    negq (rdi)
    notb (r8)
    shlq $3, (r12)
    rolw cl, (r13)
    xchg rax, (r14)
    lock xadd rcx, (r15)
    lock cmpxchg rbx, (rdx)
    lock incl (rbp)
    lock btsl $3, (rsi)
    cmpxchg8b (rdi)
    lock cmpxchg16b (rsi)
    int3

case other_addresses user common
    mov (rax,rcx), rdx
    mov 8(rax,rcx,8), rdx
    mov rdx, (,rcx,4)
    mov 0x100(rip), rax
    mov rbx, 0x1100(rip)
    mov 0x2000, ecx
    mov (rsp,rax), rdx
    mov (rax,r9), rdx
    mov (r10,r11,2), rax
    mov fs:0x28, rax
    mov gs:(rax), rbx
    mov fs:8(rbx,rcx), r9
    mov (eax), rcx
    int3

case bases_and_values_in_memory user common
    mov (r9), rax
    mov rax, (r10)
    mov (rax), r9
    mov r10, (rax)
    mov (r9), r9
    mov r9, 8(r10)
    mov r9, (r10,r11)
    add r11, (rax)
    add (rax), r11
    cmpxchg r9, (rax)
    lock cmpxchg r9, (r10,r11)
    movb $1, (r9)
    int3

case other_operations user common
    imul (rax), rbx
    imul $10, (rcx), rdx
    cmove (rsi), rdi
    btl $3, (rax)
    mulq (rbx)
    testl $1, (rcx)
    shld $3, rax, (rdx)
    bsf (rsi), rax
    movbe (rdi), eax
    popcnt (r8), rcx
    adcx (rax), rbx
    int3
