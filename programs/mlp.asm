; y = gelu(x W1) W2: a multilayer perceptron of 8 inputs, 16 hidden units and 8 outputs.
;
; x has 5 fraction bits (constant 0), both weight matrices 7. The hidden units, with 11 fraction
; bits, go to MEM bank 0, words 0 and 1, from where they enter the second product with 6. The
; result, with 9, goes to bank 1, word 0. Weight words 0 to 3 hold W1 as 2 k + tile, words 4 to 7 hold W2.

.profile tiny
.let x first_issue+const_read
.let sums x+2+matmul_to_drain           ; the first tile has its second step on x + 2
.let hidden sums+drain+vxm+vxm          ; behind the requantising MAC and GELU
.let again hidden+mem_write_to_read     ; each word is read on the cycle that it can be
.let second again+mem_read+3+matmul_to_drain    ; four steps over the hidden units
.let y second+drain+vxm
.row * generate=y+2 prompt=y+2

.const 0 43 103 95 -82 123 118 17 37

.weights 0 \
     -12  -49  -78   68  -12  -62  122   44 \
     -38 -106  -10   65   12  -62  119  -70 \
      78  -51  -58  -92  -14  114    7   22 \
    -126   55   42  -25  -87   -6   36   -4
.weights 1 \
       5  -52 -124   13   42 -105  -58  104 \
     -61  121  112  -86   11   72   65   10 \
      35   97  -44  -10   39  -52 -123   52 \
       1  114  -85 -101  -82   34  -30   -7
.weights 2 \
     -49   82  -16  -72   22  113 -110   72 \
      83 -103    3   33   88  118   39  -80 \
     -30   61  -76   12   32   65   57   29 \
      40  -51  124  -59   76   86   38  -19
.weights 3 \
      -3   69 -120   95  -69  -76  -32  -66 \
     112  -75  -90   -1  -75  120  -90   33 \
     108   71  -19  -55  -19   96   34   64 \
     -84    0  104   97  -70  -23   89   14
.weights 4 \
      34   51  -29  -33  -81  -53  -37   57 \
     107   49  -23   -1    9   49   50   45 \
     -65   19   63   82   18   66    9   57 \
     105  100  -16 -127   16   79   24  -85
.weights 5 \
      76 -109  -99  -96  -88 -126   41 -103 \
     -46   89 -120   27   85   70    6  -20 \
     -64   42   65   50  -18  -76   52 -118 \
     125 -102  -25  -35   53  -63  -64   76
.weights 6 \
      41   95   -5  -90  110  113  -81  113 \
    -115  110  124  -17   20  -19   19  -33 \
     -15  102  -58 -115  -76  -20  -56  111 \
     -92   61   46   79  -44   86  105  -57
.weights 7 \
    -103   21  -88  -60  -76  -12 -116  -30 \
     -36 -121  109  108  -68 -125   31  -51 \
     -94  111  122  127   26   44  -89  -21 \
      51  -30   19  -30   98   10 -109   44

.queue const
    READ at=first_issue
    END

.queue mxm
    MATMUL at=x n1=2 n2=2 s1=1 s2=2 order=K_OUTER start=1 x0=CONST x1=CONST
    MATMUL at=again+mem_read n1=4 s1=1 address=4 order=K_INNER start=1 x0=M0 x1=M0 shift=5 accumulator=2
    END

.queue drain
    DRAIN at=sums n1=2 d1=2     ; every other cycle, because the second product takes
    DRAIN at=second accumulator=2   ; a new vector every other cycle
    END

.queue vxm
    MAC at=sums+drain n1=2 d1=2 a=ACC post=1        ; 12 to 11 fraction bits
    GELU at=sums+drain+vxm n1=2 d1=2 a=VXM
    MAC at=second+drain a=ACC post=4                ; 13 to 9
    END

.queue r0
    READ at=again n1=2 d1=2 s1=1
    END

.queue w0
    WRITE at=hidden n1=2 d1=2 s1=1 x=VXM halves=3
    END

.queue w1
    WRITE at=y x=VXM halves=3
    END
