module github.com/signet-spiffe/signet/integration/tools/pause

go 1.26.0
