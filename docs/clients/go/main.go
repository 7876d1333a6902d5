// Reads, pages, meets a deadline and watches, through the gateway:
//
//	go run . 127.0.0.1:50051 CH00000000000000000000000000000001
//
// The address may be a name that stands for several gateways: dns:///participant-gateway-headless:50051.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"os"
	"time"

	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "example.com/participant-gateway/client/participant/v1"
)

const (
	attempts = 6
	// Three heartbeats: a watcher that hears nothing for so long is not connected, whatever its connection says.
	silence = 45 * time.Second
)

// failure is what the gateway says about a failed call; an error of the network has no details.
type failure struct {
	code         codes.Code
	info         *errdetails.ErrorInfo
	retry        *errdetails.RetryInfo
	forbidsRetry bool
}

func failureOf(err error, trailer metadata.MD) failure {
	said := failure{code: status.Code(err)}
	for _, detail := range status.Convert(err).Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			said.info = detail
		case *errdetails.RetryInfo:
			said.retry = detail
		}
	}
	pushback := trailer.Get("grpc-retry-pushback-ms")
	said.forbidsRetry = len(pushback) > 0 && pushback[0] == "-1"
	return said
}

func (f failure) String() string {
	if reason := f.info.GetReason(); reason != "" {
		return reason
	}
	return f.code.String()
}

// waitBefore says how long to wait before the call is repeated, if it may be.
func (f failure) waitBefore(attempt int) (time.Duration, bool) {
	switch {
	case f.forbidsRetry:
		return 0, false
	case f.retry != nil:
		// Never shorter, and a little longer by chance, so that callers who were told the same do not come back at once.
		wait := f.retry.GetRetryDelay().AsDuration()
		return wait + time.Duration(rand.Float64()*float64(wait)/10), true
	case f.code == codes.Unavailable:
		return backoff(attempt), true
	default:
		return 0, false
	}
}

func backoff(attempt int) time.Duration {
	longest := min(100*time.Millisecond<<min(attempt, 6), 5*time.Second)
	return time.Duration((0.5 + rand.Float64()/2) * float64(longest))
}

// repeated is the one place that repeats calls: only those that are safe to repeat go through it, and all within one
// deadline.
func repeated[Q, A any](
	ctx context.Context, call func(context.Context, Q, ...grpc.CallOption) (A, error), request Q, limit time.Duration,
) (A, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for attempt := 1; ; attempt++ {
		var trailer metadata.MD
		answer, err := call(ctx, request, grpc.Trailer(&trailer))
		if err == nil {
			return answer, nil
		}
		said := failureOf(err, trailer)
		wait, may := said.waitBefore(attempt)
		if deadline, _ := ctx.Deadline(); !may || attempt == attempts || time.Now().Add(wait).After(deadline) {
			return answer, err
		}
		fmt.Printf("retry: %v, in %.1f s\n", said, wait.Seconds())
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return answer, err
		}
	}
}

type client struct {
	pb.ParticipantServiceClient
	conversation *pb.ConversationRef
}

func (c client) page(ctx context.Context) ([]*pb.Participant, error) {
	var participants []*pb.Participant
	token := ""
	for pages := 1; ; pages++ {
		request := &pb.ListParticipantsRequest{Conversation: c.conversation, PageSize: 2, PageToken: token}
		answer, err := repeated(ctx, c.ListParticipants, request, 10*time.Second)
		if err != nil {
			return nil, err
		}
		participants = append(participants, answer.GetParticipants()...)
		if token = answer.GetNextPageToken(); token == "" {
			fmt.Printf("page: %d participants on %d pages\n", len(participants), pages)
			return participants, nil
		}
	}
}

// fresh asks Twilio; without options it would be the gateway's default.
func (c client) fresh(id string) *pb.GetParticipantRequest {
	options := &pb.ReadOptions{MaxAge: durationpb.New(0)}
	return &pb.GetParticipantRequest{Conversation: c.conversation, ParticipantId: id, ReadOptions: options}
}

func (c client) read(ctx context.Context, id string) error {
	answer, err := repeated(ctx, c.GetParticipant, c.fresh(id), 10*time.Second)
	if err == nil {
		fmt.Printf("read: %s %v\n", answer.GetParticipant().GetId(), answer.GetReadInfo().GetCacheStatus())
	}
	return err
}

// meetDeadline does not repeat: who has no more time has none for another attempt.
func (c client) meetDeadline(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	_, err := c.GetParticipant(ctx, c.fresh(id))
	fmt.Printf("deadline: %v\n", status.Code(err))
}

func (c client) create(ctx context.Context) (string, error) {
	participant := &pb.Participant{
		Addresses: []*pb.Address{{Channel: pb.Channel_CHANNEL_CHAT, Address: "client-" + uuid.NewString()}},
	}
	// The same id at every attempt makes this create safe to repeat.
	request := &pb.CreateParticipantRequest{Conversation: c.conversation, Participant: participant, RequestId: uuid.NewString()}
	answer, err := repeated(ctx, c.CreateParticipant, request, 20*time.Second)
	if err == nil {
		fmt.Printf("create: %s\n", answer.GetParticipant().GetId())
	}
	return answer.GetParticipant().GetId(), err
}

// watch hands every change to handle once, whatever becomes of the connection, until ctx is done.
func (c client) watch(ctx context.Context, handle func(*pb.ParticipantEvent), begin func(context.Context) error) error {
	token := ""
	for failures := 1; ; failures++ {
		heard, err := c.watchOnce(ctx, &token, handle, begin)
		if ctx.Err() != nil {
			return nil
		}
		if heard {
			failures = 1
		}
		said := failureOf(err, nil)
		switch reason := said.info.GetReason(); {
		case reason == "WATCH_LAGGED":
			token = said.info.GetMetadata()["resume_token"]
		case reason == "RESUME_TOKEN_EXPIRED":
			token = ""
		case said.code != codes.Unavailable && said.code != codes.DeadlineExceeded && said.code != codes.Canceled:
			return err
		}
		fmt.Printf("watch: resumes after %v\n", said)
		time.Sleep(backoff(failures))
	}
}

func (c client) watchOnce(
	ctx context.Context, token *string, handle func(*pb.ParticipantEvent), begin func(context.Context) error,
) (heard bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	request := &pb.WatchParticipantsRequest{Conversations: []*pb.ConversationRef{c.conversation}, ResumeToken: *token}
	stream, err := c.WatchParticipants(ctx, request, grpc.WaitForReady(true))
	if err != nil {
		return false, err
	}
	timer := time.AfterFunc(silence, cancel)
	defer timer.Stop()
	for {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			err = status.Error(codes.Unavailable, "the stream ended")
		}
		if err != nil {
			return heard, err
		}
		timer.Reset(silence)
		if *token == "" {
			// Only now what is read is whole: a change from here on is told, and the read sees those before.
			if err := begin(ctx); err != nil {
				return heard, err
			}
		}
		if event := message.GetEvent(); event != nil {
			handle(event)
		}
		// Not before it is dealt with. Who keeps it on disk goes on from here after a restart.
		*token, heard = message.GetResumeToken(), true
	}
}

func run(address, conversation string) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	connection, err := grpc.NewClient(address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		// A connection that has died in silence is noticed after at most 40 s, also while only a stream is open on it.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		// Every address of the name takes its share of the calls.
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"round_robin": {}}]}`),
	)
	if err != nil {
		return err
	}
	defer connection.Close()
	c := client{pb.NewParticipantServiceClient(connection), &pb.ConversationRef{ConversationId: conversation}}

	participants, err := c.page(ctx)
	if err != nil {
		return err
	}
	if err := c.read(ctx, participants[0].GetId()); err != nil {
		return err
	}
	c.meetDeadline(ctx, participants[len(participants)-1].GetId())

	begun, told, ended := make(chan struct{}, 1), make(chan string), make(chan error, 1)
	begin := func(ctx context.Context) error {
		if _, err := c.page(ctx); err != nil {
			return err
		}
		select {
		case begun <- struct{}{}:
		default:
			// It is known: this is another beginning, after a token that had expired.
		}
		return nil
	}
	handle := func(event *pb.ParticipantEvent) {
		fmt.Printf("watch: %s %v\n", event.GetParticipant().GetId(), event.GetType())
		select {
		case told <- event.GetParticipant().GetId():
		case <-ctx.Done():
		}
	}
	go func() { ended <- c.watch(ctx, handle, begin) }()
	select {
	case <-begun:
	case err := <-ended:
		return err
	}
	for range 2 {
		created, err := c.create(ctx)
		if err != nil {
			return err
		}
		for id := ""; id != created; {
			select {
			case id = <-told:
			case err := <-ended:
				return err
			}
		}
	}
	// Before the connection closes, which the watch would else take for a loss and resume.
	cancel()
	<-ended
	fmt.Println("done")
	return nil
}

func main() {
	if err := run(os.Args[1], os.Args[2]); err != nil {
		log.Fatal(err)
	}
}
