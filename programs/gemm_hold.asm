; C = round(A B / 32) with the weights held: the classical weight-stationary use of the array.
;
; A is 12 x 16 (constants: row m in word m, its columns 8 to 15 in word 12 + m), B is 16 x 8 (weight
; word k: rows 4 k to 4 k + 3), C goes to MEM bank 0, row m in word m, saturated to 16 bits. Every
; weight word stays at the multipliers for 12 cycles while the rows of A stream by.

.profile tiny
.let a first_issue+const_read           ; the first row of A reaches the array
.let sums a+36+matmul_to_drain          ; row 0 of C is complete: its last step is a + 36
.row * generate=sums+drain+vxm+13 prompt=sums+drain+vxm+13

.const  0   79  -44  -48   -8   79  -76  -50    5
.const  1   86   39   85  -10   10   28  -19  -46
.const  2   76   63   85 -100   54  -34   30  -83
.const  3  -12   41  -70   23  -18   -7    6  -41
.const  4  -53  -48  -40   23   67   39  -80   41
.const  5   33    7    0  -56  -73   63  -33  -79
.const  6  -31   97   79  -42  -46  -11   55  -39
.const  7  -92  -87   58   87  -46  -61   12    6
.const  8   98   22    4  -44   47  -69  -25   -7
.const  9  -51    6   29  -22  -24  100   50  -25
.const 10  -85  -49   75   -9  100   61  -75    4
.const 11   25  -22   77   60   27  -46  -24   63
.const 12  -52  -18  -31  -86  -94  -81   33   98
.const 13   40  -40   11  -86  -58  -90   23   62
.const 14  -56   -6  -46   24   82   10   87  -74
.const 15   41   84  -73  -84  -48  -71  -20  -24
.const 16   32   55  -58  -65  -98   50  -21  -51
.const 17   80  -14   -7   27   -7   40   78  -81
.const 18  -97  -92  -61  -51   96  -35   86   15
.const 19  -13  -29  -63  -28    1   83   22   78
.const 20  -11  -66    5   -1    9  -86  -15  -97
.const 21   79    7   93  -22   51   55    2  -25
.const 22  -29   36  -34   21  -38  -53  -87   -4
.const 23  -84  -29    4  -34  -56   84   75   74

.weights 0 \
     -87   10  -53   83  110   94  -12   69 \
     -77   22  -73   61 -115 -113   98  -44 \
      40    5 -113  -96   22  -75   10  -81 \
      33  -66   27  -33   82  -54  -50  109
.weights 1 \
    -116 -121   73   17  -29   34  -28   48 \
      -6  -47  -33  124  103   26  -40   52 \
      54 -111   60  -30  111  -66   28   97 \
     109  -36 -104  -67  127   88   77  -81
.weights 2 \
     -95  -27  -99  105  -60 -121  -88  -88 \
     -29    0  -32  -12   27  121  -95  100 \
       8   38   52 -120  -84  -80 -111   14 \
      -1  -18  -15  119  -30  -10  -42  115
.weights 3 \
     -55  -80   83   90 -101   37  101   92 \
      97   53 -111   31  -95  -81 -107 -104 \
      81 -112 -108  -90   65  -69  -38  -66 \
     -98  -73  106  -13   24   38   26   94

.queue const
    READ at=first_issue n1=12 s1=1                      ; columns 0 to 7 of A, for k = 0
    READ at=first_issue+12 n1=12 s1=1                   ; and for k = 1
    READ at=first_issue+24 n1=12 s1=1 address=12        ; columns 8 to 15, for k = 2
    READ at=first_issue+36 n1=12 s1=1 address=12        ; and for k = 3
    END

.queue mxm
    MATMUL at=a n1=12 n2=2 s2=1 order=HOLD start=1 x0=CONST x1=CONST
    MATMUL at=a+24 n1=12 n2=2 s2=1 address=2 order=HOLD x0=CONST x1=CONST
    END

.queue drain
    DRAIN at=sums n1=12
    END

.queue vxm
    MAC at=sums+drain n1=12 a=ACC post=5
    END

.queue w0
    WRITE at=sums+drain+vxm n1=12 s1=1 x=VXM halves=3
    END
