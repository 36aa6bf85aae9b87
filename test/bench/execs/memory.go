package main

import "context"

func (b *bench) memory(ctx context.Context) error { return nil }
func (b *bench) flood(ctx context.Context) error { return nil }
