// Modules two and two with the same ports, driven with the same random inputs and compared on every
// cycle.
//
// Built together with what Verilator makes of the top that sim/pair.py writes; ports.h names its
// inputs and outputs. Plain C functions, loaded with ctypes.
#include <cstdint>
#include <cstring>

#include "Vtop.h"
#include "verilated.h"
#include "ports.h"

namespace {

// SplitMix64 (Steele, Lea, Flood 2014).
struct Random {
    uint64_t state;
    uint64_t operator()() {
        uint64_t z = state += 0x9e3779b97f4a7c15;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
        z = (z ^ z >> 27) * 0x94d049bb133111eb;
        return z ^ z >> 31;
    }
};

// How an input is drawn for some time: left as it is, mostly 0, mostly -1, at random in all bits or
// in its low ones.
enum Mode { KEPT, LOW, HIGH, FREE, SMALL, MODES };
// One cycle in so many has a rare value.
constexpr uint64_t RARE = 256;

// With habits that last, conditions hold for long enough to get somewhere, and adders and counters
// meet their ends.
struct Habit {
    unsigned mode, bits;
    uint64_t change;
    void begin(Random& random, unsigned width) {
        mode = random() % MODES;
        bits = mode == SMALL ? random() % width + 1 : width;
        change = 8ull << 3 * (random() % 4);
    }
};

template <typename Port>
void draw(Random& random, Habit& habit, Port& port, unsigned width) {
    if (random() % habit.change == 0) habit.begin(random, width);
    if (habit.mode == KEPT) return;
    const bool free = habit.mode >= FREE || random() % RARE == 0;
    uint8_t bytes[sizeof port];
    for (unsigned place = 0; place < sizeof bytes; ++place)
        bytes[place] = free ? random() : habit.mode == LOW ? 0 : 0xff;
    for (unsigned place = 0; place < sizeof bytes; ++place)
        if (8 * place >= habit.bits) bytes[place] = 0;
        else if (8 * place + 8 > habit.bits) bytes[place] &= (1u << (habit.bits - 8 * place)) - 1;
    std::memcpy(&port, bytes, sizeof bytes);
}

// From a cycle on an input keeps a value, or is drawn again.
struct Order {
    uint64_t cycle, input, held, value;
};

template <typename Port>
void keep(const Order& order, Port& port) {
    std::memset(&port, 0, sizeof port);
    std::memcpy(&port, &order.value, sizeof port < 8 ? sizeof port : 8);
}

}  // namespace

extern "C" {

// Reset, then `cycles` cycles, with orders sorted by cycle. `different` becomes, for each output, the first cycle on which its
// two sides differ, or `cycles`; `moved` a 1 for each output that ever changed.
void pair_run(uint64_t seed, uint64_t cycles, const Order* order, uint64_t orders,
              uint64_t* different, uint8_t* moved) {
    VerilatedContext context;
    context.randReset(0);
    Vtop top(&context, "pair");
    Random random{seed};
    auto clock = [&] {
        top.clk = 0;
        top.eval();
        top.clk = 1;
        top.eval();
    };
    top.rst = 1;
    for (int i = 0; i < 4; ++i) clock();
    top.rst = 0;
    for (unsigned i = 0; i < PORT_OUTPUTS; ++i) different[i] = cycles;
    Habit habits[PORT_INPUTS];
    const Order* held[PORT_INPUTS] = {};
#define BEGIN(NUMBER, NAME, BITS) habits[NUMBER].begin(random, BITS);
    PORT_EACH_INPUT(BEGIN)
#undef BEGIN
    static uint8_t before[PORT_OUTPUTS][PORT_BYTES];
    for (uint64_t cycle = 0; cycle < cycles; ++cycle) {
        top.clk = 0;
        for (; orders && order->cycle == cycle; ++order, --orders)
            held[order->input] = order->held ? order : nullptr;
#define DRAW(NUMBER, NAME, BITS)                                                                   \
        if (held[NUMBER]) keep(*held[NUMBER], top.NAME);                                           \
        else draw(random, habits[NUMBER], top.NAME, BITS);
        PORT_EACH_INPUT(DRAW)
#undef DRAW
        top.eval();
#define COMPARE(NUMBER, FIRST, SECOND)                                                   \
        if (different[NUMBER] == cycles && std::memcmp(&top.FIRST, &top.SECOND, sizeof top.FIRST)) \
            different[NUMBER] = cycle;                                                   \
        if (cycle > 0 && std::memcmp(before[NUMBER], &top.FIRST, sizeof top.FIRST))      \
            moved[NUMBER] = 1;                                                           \
        std::memcpy(before[NUMBER], &top.FIRST, sizeof top.FIRST);
        PORT_EACH_OUTPUT(COMPARE)
#undef COMPARE
        top.clk = 1;
        top.eval();
    }
    top.final();
}

}  // extern "C"
