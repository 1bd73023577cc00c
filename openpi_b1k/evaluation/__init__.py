"""Does it act? Rollouts in the sample world now; the simulator's evaluator talks to the server."""
