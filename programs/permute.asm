; Moves between lanes: bit reversal, rotation, compaction, and a butterfly that follows the position.
;
; MEM bank 0: word 0 is constant 0 with its lane numbers bit-reversed, word 1 that rotated by one
; lane, word 2 the even lanes of word 1 followed by zeros. Bank 1, word 0: lane l is lane
; l xor (position mod 8) of constant 0.

.profile tiny
.let x first_issue+const_read
.let last x+perm+perm+perm_gap
.row * generate=last+perm+2 prompt=last+perm+2

.const 0 100 -201 302 -403 504 -605 706 -807

.pattern 0  0 4 2 6 1 5 3 7
.pattern 1  7 0 1 2 3 4 5 6
.pattern 2  0 2 4 6 z z z z
.pattern 3  0 1 2 3 4 5 6 7

.queue const
    READ at=first_issue
    READ at=last-const_read
    END

.queue perm
    PERM at=x x=CONST pattern=0
    PERM at=x+perm x=PERM pattern=1
    PERM at=x+perm+perm x=PERM pattern=2
    PERM at=last x=CONST pattern=3 index=POSITION
    END

.queue w0
    WRITE at=x+perm n1=3 d1=perm s1=1 x=PERM halves=3
    END

.queue w1
    WRITE at=last+perm x=PERM halves=3
    END
