"""Guest instructions of a step on emulated boards, where their time cannot be measured."""
