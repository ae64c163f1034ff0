# Bits, single and in strings.

case single user common
    bt $3, rax
    bts $5, ecx
    btr rbx, rdx
    btc cx, si
    btl $3, (rax)
    lock btsq $60, (rbx)
    bt r9, rax
    bts rax, r10
    int3

# A number in a register reaches any distance from the operand.
case a_string user
    bt rax, (rbx)
    int3

case strings user common
    bt rax, (rbx)
    bts ecx, 8(rdx)
    lock btr rsi, (rdi)
    btc r9, (rax)
    bt eax, (r10,r11)
    bt rax, fs:(rbx)
    bt ax, (rbx)
    bt rax, 0x100(rip)
    int3

case strings_with_live_flags user
    cmp rax, rbx
    bts rcx, (rdx)
    je 1f
1:  int3

case strings_in_the_kernel kernel
    lock bts rax, (rbx)
    jc 1f
1:  int3

case counts user
    bsf rax, rbx
    bsr ecx, edx
    popcnt rax, r9
    lzcnt rbx, rcx
    tzcnt r10, r11
    tzcnt edx, esi
    int3

case bmi user common
    andn rax, rbx, rcx
    blsi rax, rbx
    blsr r9, r10
    bextr rax, rbx, rcx
    bzhi rax, (rbx), rcx
    pdep rax, rbx, r9
    pext (rdi), rax, rdx
    rorx $3, rax, rbx
    sarx rax, rbx, rcx
    shlx r9, (rsi), rax
    crc32 rax, rbx
    int3
